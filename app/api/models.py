"""GET /v1/models and /v1/models/{id}: the variants in OpenAI's words."""

from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.variant_prefix import VARIANT
from app.core.variants import Variant, VariantState

router = APIRouter()
_encode = msgspec.json.Encoder().encode

# The words of llama.cpp's router, which Open WebUI reads: a load that failed is `unloaded` and says so beside it.
STATUS: Final = {
    VariantState.REGISTERED: "unloaded",
    VariantState.LOADING: "loading",
    VariantState.READY: "loaded",
    VariantState.RESTARTING: "loading",
    # its memory is taken, and it cannot be loaded, until its process is gone
    VariantState.UNLOADING: "loaded",
    VariantState.FAILED: "unloaded",
    VariantState.QUARANTINED: "unloaded",
}
_FAILED: Final = frozenset({VariantState.FAILED, VariantState.QUARANTINED})


@router.get("/v1/models")
@router.get("/models")
async def list_models(request: Request) -> Response:
    """Every variant, those that are ready first: benchmark clients take the first one. Below a prefix, that variant."""
    catalog = request.app.state.server.catalog
    if VARIANT in request.scope:
        variants = [catalog.model(request.scope[VARIANT])]
    else:
        variants = sorted(catalog.models(), key=lambda item: item.state is not VariantState.READY)
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
        "status": status(variant),
        "slimserve": {
            "base": variant.base,
            "method": variant.method,
            "format": variant.format,
            "bits": variant.bits,
            "group_size": variant.group_size,
            "state": variant.state,
            "reason": variant.reason,
            "lane": info.lane if info is not None else None,
            "lane_reason": info.lane_reason if info is not None else None,
            "kernel": info.kernel if info is not None else None,
            "device": info.device if info is not None else None,
            "bytes": variant.weight_bytes,
            "bytes_on_disk": variant.bytes_on_disk,
            "weight_bytes": info.weight_bytes if info is not None else None,
        },
    }


def status(variant: Variant) -> dict[str, Any]:
    """`value`, and `failed` if it cannot be loaded as it is."""
    value = {"value": STATUS[variant.state]}
    return {**value, "failed": True} if variant.state in _FAILED else value


def _json(content: Any) -> Response:
    return Response(_encode(content), media_type="application/json")
