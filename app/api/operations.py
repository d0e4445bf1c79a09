"""/healthz, /readyz, /health and /version: for those who run the server."""

import time
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from app import __version__
from app.api.answer import json_answer
from app.core.server import Server
from app.errors import Unavailable

router = APIRouter()
SUPERVISOR_SILENCE_S: Final = 10.0
_MAX_NAMED: Final = 10


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
@router.get("/health")
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    """200 while the event loop answers and the supervisor watches; models do not matter."""
    server: Server = request.app.state.server
    if time.monotonic() - server.supervisor.ticked_at_s > SUPERVISOR_SILENCE_S:
        raise Unavailable("The supervisor does not watch its workers.", retry_after_s=10, code="unhealthy")
    return json_answer({"status": "ok"})


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
async def ready(request: Request) -> Response:
    """200 if every variant that was asked for at the start, or loaded since, takes requests."""
    server: Server = request.app.state.server
    if server.is_draining:
        raise Unavailable("The server is stopping.", retry_after_s=30, code="draining")
    unready = server.loader.unready()
    if unready:
        named = "; ".join(f"{name}: {why}" for name, why in [*unready.items()][:_MAX_NAMED])
        raise Unavailable(f"Not ready: {named}", retry_after_s=2, code="not_ready")
    return json_answer({"status": "ready"})


@router.get("/version")
async def version() -> Response:
    """The version of the product."""
    return json_answer({"version": __version__})
