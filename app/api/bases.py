"""GET /v1/bases: the models as published, from which variants are made."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.core.server import Server
from app.schemas.variants import BaseObject
from app.store.bases import BaseRow

router = APIRouter()


@router.get("/v1/bases")
async def list_bases(request: Request) -> Response:
    """Every base, oldest first."""
    server: Server = request.app.state.server
    return json_answer({"object": "list", "data": [_base_object(row) for row in server.catalog.bases.list()]})


def _base_object(row: BaseRow) -> BaseObject:
    return BaseObject(
        id=row.name,
        source=row.source,
        architecture=row.info.architecture,
        weight_bytes=row.info.weight_bytes,
        num_parameters=row.info.num_parameters,
        max_model_len=row.info.max_model_len,
        created=row.created,
    )
