"""GET /v1/export/{id}: the files of a variant, one by one; `slimserve export` puts them together and checks them."""

import asyncio
import json
from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from app.core.publish import MANIFEST
from app.core.server import Server
from app.errors import InvalidRequest, NotFound

router = APIRouter()


@router.get("/v1/export/{variant_id:path}")
async def export_file(request: Request, variant_id: str, file: str = MANIFEST) -> Response:
    """One file of a variant; without a name its manifest.json, which lists the others with size and SHA-256."""
    server: Server = request.app.state.server
    entry = server.catalog.entry(variant_id)
    if entry.row.dir is None:
        raise InvalidRequest(f"'{entry.row.id}' has no files of its own: it is its base in one dtype.", param="model")
    names = await asyncio.to_thread(_names, (entry.folder / MANIFEST).read_bytes)
    if file not in names:
        raise NotFound(f"Variant '{entry.row.id}' has no file '{file[:160]}'.", param="file")
    return FileResponse(entry.folder / file, media_type="application/octet-stream")


def _names(read: Callable[[], bytes]) -> set[str]:
    return {MANIFEST, *json.loads(read())["files"]}
