"""POST /v1/quantize, and /v1/compress, which is the same: start a compression job. GET /v1/methods: what there is."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.body import json_body
from app.core.compress_request import resolve_spec
from app.core.methods import list_methods
from app.core.server import Server
from app.errors import InvalidRequest
from app.schemas.jobs import QuantizeBody

router = APIRouter()
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@router.get("/v1/methods")
async def methods() -> Response:
    """Every method of compression, with its options."""
    return json_answer({"object": "list", "data": list_methods()})


@router.post("/v1/quantize")
@router.post("/v1/compress")
async def quantize(request: Request, body: Annotated[QuantizeBody, Depends(json_body(QuantizeBody))]) -> Response:
    """Accept a job: 202 says that it is on disk. The same Idempotency-Key and body give the same job for a day."""
    server: Server = request.app.state.server
    key = idempotency_key(request)
    spec = resolve_spec(body, server.catalog, server.settings)
    job = await server.jobs.submit(spec, key)
    return json_answer(job, 202, {"location": f"/v1/jobs/{job.id}"})


def idempotency_key(request: Request) -> str | None:
    """The header's value. Raises InvalidRequest for one that is no key."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key is 1 to 255 printable ASCII characters.", param="Idempotency-Key")
    return key
