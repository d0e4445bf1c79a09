"""GET and POST /v1/bases: the models as published, from which variants are made."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.body import json_body
from app.core.load_request import LoadRequest
from app.core.server import Server
from app.schemas.load import RegisterBody
from app.schemas.variants import BaseObject
from app.store.bases import BaseRow

router = APIRouter()


@router.get("/v1/bases")
async def list_bases(request: Request) -> Response:
    """Every base, oldest first."""
    server: Server = request.app.state.server
    return json_answer({"object": "list", "data": [_base_object(row) for row in server.catalog.bases.list()]})


@router.post("/v1/bases")
async def register(request: Request, body: Annotated[RegisterBody, Depends(json_body(RegisterBody))]) -> Response:
    """Register a model without loading it, as compressing one needs that is too large to load: 200, or 202 while it is
    downloaded.
    """
    server: Server = request.app.state.server
    wanted = LoadRequest(model=body.model, name=body.name, revision=body.revision)
    row = await server.loader.register(wanted, wait=body.wait)
    if row is None:
        return json_answer({"object": "base", "source": body.model, "state": "downloading"}, 202)
    return json_answer(_base_object(row))


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
