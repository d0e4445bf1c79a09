"""GET /v1/export/{id}: the files of a variant, one by one; `slimserve export` puts them together and checks them."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from app.core.exported import CARD, exported_card, exported_manifest, exported_names
from app.core.publish import MANIFEST
from app.core.server import Server
from app.errors import InvalidRequest, NotFound

router = APIRouter()
_MEDIA_TYPE = "application/octet-stream"
_RENDERED = {MANIFEST: exported_manifest, CARD: exported_card}


@router.get("/v1/export/{variant_id:path}")
async def export_file(request: Request, variant_id: str, file: str = MANIFEST) -> Response:
    """One file of a variant; without a name its manifest.json, which lists the others with size and SHA-256."""
    server: Server = request.app.state.server
    entry = server.catalog.entry(variant_id)
    if entry.row.dir is None:
        raise InvalidRequest(f"'{entry.row.id}' has no files of its own: it is its base in one dtype.", param="model")
    if file not in await asyncio.to_thread(exported_names, entry.folder):
        raise NotFound(f"Variant '{entry.row.id}' has no file '{file[:160]}'.", param="file")
    if file in _RENDERED:
        content = await asyncio.to_thread(_RENDERED[file], entry.folder, entry.quality)
        return Response(content, media_type=_MEDIA_TYPE)
    return FileResponse(entry.folder / file, media_type=_MEDIA_TYPE)
