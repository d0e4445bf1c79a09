"""GET /v1/variants, GET and DELETE /v1/variants/{id}: the registry."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.core.server import Server
from app.core.variants import Variant
from app.schemas.variants import QualityObject, VariantObject

router = APIRouter()


@router.get("/v1/variants")
async def list_variants(request: Request) -> Response:
    """Every variant, oldest first."""
    server: Server = request.app.state.server
    return json_answer({"object": "list", "data": [variant_object(one) for one in server.catalog.list()]})


@router.get("/v1/variants/{variant_id:path}")
async def get_variant(request: Request, variant_id: str) -> Response:
    """One variant, by its id or by the name of its base."""
    server: Server = request.app.state.server
    return json_answer(variant_object(server.catalog.resolve(variant_id)))


@router.delete("/v1/variants/{variant_id:path}")
async def delete_variant(request: Request, variant_id: str, force: bool = False) -> Response:
    """Remove a variant and its files; with force also a loaded one."""
    server: Server = request.app.state.server
    await server.catalog.delete(variant_id, force=force)
    return json_answer({"id": variant_id, "object": "variant", "deleted": True})


def variant_object(variant: Variant) -> VariantObject:
    """The variant as clients see it."""
    info, quality = variant.info, variant.quality
    return VariantObject(
        id=variant.id,
        base=variant.base,
        method=variant.method,
        state=variant.state,
        reason=variant.reason,
        created=variant.created,
        format=info.format if info is not None else variant.format,
        bits=variant.bits,
        group_size=variant.group_size,
        dtype=info.dtype if info is not None else None,
        device=info.device if info is not None else None,
        device_name=info.device_name if info is not None else None,
        lane=info.lane if info is not None else None,
        lane_reason=info.lane_reason if info is not None else None,
        kernel=info.kernel if info is not None else None,
        architecture=variant.architecture,
        num_parameters=variant.num_parameters,
        max_model_len=info.max_model_len if info is not None else variant.max_model_len,
        bytes_on_disk=variant.bytes_on_disk,
        estimated_bytes=variant.estimated_bytes,
        weight_bytes=info.weight_bytes if info is not None else None,
        kv_cache_bytes=info.kv_cache_bytes if info is not None else None,
        process_bytes=variant.process_bytes,
        measured_bytes=variant.measured_bytes,
        pinned=variant.is_pinned,
        load_s=info.load_s if info is not None else None,
        restarts=variant.restarts,
        running=variant.running,
        waiting=variant.waiting,
        quality=None
        if quality is None
        else QualityObject(kl_mean=variant.kl_mean, top1_agreement=variant.top1_agreement, measured=quality.measured),
        tool_parser=variant.tool_parser,
        reasoning_parser=variant.reasoning_parser,
    )
