"""GET /v1/models and /v1/models/{id}: the variants in OpenAI's words."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.core.variants import Variant, VariantState

router = APIRouter()
_encode = msgspec.json.Encoder().encode

# The words of llama.cpp's router, which Open WebUI reads.
STATUS: Final = {
    VariantState.REGISTERED: "unloaded",
    VariantState.LOADING: "loading",
    VariantState.READY: "loaded",
    VariantState.RESTARTING: "loading",
    VariantState.UNLOADING: "unloaded",
    VariantState.FAILED: "failed",
    VariantState.QUARANTINED: "failed",
}


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """Every variant, those that are ready first: benchmark clients take the first one."""
    variants = sorted(request.app.state.server.catalog.models(), key=lambda item: item.state is not VariantState.READY)
    return _json({"object": "list", "data": [model_item(variant) for variant in variants]})


@router.get("/v1/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    """One variant, by its id or by the name of its base."""
    return _json(model_item(request.app.state.server.catalog.model(model_id)))


def model_item(variant: Variant) -> dict[str, Any]:
    """One variant as a model."""
    info = variant.info
    return {
        "id": variant.id,
        "object": "model",
        "created": variant.created,
        "owned_by": "slimserve",
        "root": str(variant.folder),
        "parent": variant.base,
        "max_model_len": info.max_model_len if info is not None else variant.max_model_len,
        "status": {"value": STATUS[variant.state]},
        "slimserve": {
            "base": variant.base,
            "method": variant.method,
            "format": variant.format,
            "bits": variant.bits,
            "state": variant.state,
            "reason": variant.reason,
            "lane": info.lane if info is not None else None,
            "lane_reason": info.lane_reason if info is not None else None,
            "kernel": info.kernel if info is not None else None,
            "device": info.device if info is not None else None,
            "bytes_on_disk": variant.bytes_on_disk,
            "weight_bytes": info.weight_bytes if info is not None else None,
        },
    }


def _json(content: Any) -> Response:
    return Response(_encode(content), media_type="application/json")
