"""POST /models/load, POST /models/unload and GET /models/sse, as llama.cpp's router has them: Open WebUI's buttons.

GET /models is that of app.api.models. What these do, POST /v1/load and /v1/unload do too, and say more about it.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.answer import json_answer
from app.api.attended import run_attended
from app.api.body import json_body
from app.api.models import status
from app.api.sse import PING, EventWriter, event
from app.core.load_request import LoadRequest
from app.core.server import Server
from app.core.variants import Variant
from app.schemas.model_router import RouterModelRequest

router = APIRouter()
logger = logging.getLogger(__name__)

# Loads move in seconds, and reading the registry costs microseconds per variant.
_LOOK_INTERVAL_S: Final = 0.25
_STAGES: Final = ("reading", "building", "proving", "allocating")


@router.post("/models/load")
async def load_model(
    request: Request, body: Annotated[RouterModelRequest, Depends(json_body(RouterModelRequest))]
) -> Response:
    """Begin to load a model; one that is loaded already stays so. GET /models/sse tells the rest."""
    server: Server = request.app.state.server
    await server.loader.load(LoadRequest(model=body.model), wait=False)
    return json_answer({"success": True})


@router.post("/models/unload")
async def unload_model(
    request: Request, body: Annotated[RouterModelRequest, Depends(json_body(RouterModelRequest))]
) -> Response:
    """Begin to unload a model: its requests may end first."""
    server: Server = request.app.state.server
    await server.catalog.unload(body.model, wait=False, force=False)
    return json_answer({"success": True})


@router.get("/models/sse")
async def model_events(request: Request) -> Response:
    """The status of every model, then each change, until the client leaves or the server stops."""
    return ModelEvents(request.app.state.server)


class ModelEvents(Response):
    """An endless stream: running it is looking at the registry again and again."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the client leaves."""
        try:
            await run_attended(receive, self._serve(EventWriter(scope, send)))
        except ClientDisconnect:
            logger.debug("a reader of model events left", extra={"request_id": scope.get("slimserve.request_id")})

    async def _serve(self, writer: EventWriter) -> None:
        await writer.start()
        known: dict[str, dict[str, Any]] = {}
        while not self._server.is_draining:
            now = {variant.id: _data(variant) for variant in self._server.catalog.models()}
            events = b"".join(event(one) for one in changes(known, now))
            if events:
                await writer.write(events)
            elif writer.silent_s() >= self._server.settings.ping_interval_s:
                await writer.write(PING)
            known = now
            await asyncio.sleep(_LOOK_INTERVAL_S)
        await writer.end(b"")


def changes(known: Mapping[str, dict[str, Any]], now: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One event for each model whose data is new, and for each that is gone."""
    for model, data in now.items():
        if known.get(model) != data:
            yield {"model": model, "event": "model_status", "data": data}
    for model in known.keys() - now.keys():
        yield {"model": model, "event": "model_remove", "data": {}}


def _data(variant: Variant) -> dict[str, Any]:
    """The status, and how far a load is: the phases in their order, the present one, its share 0..1."""
    said = status(variant)
    data = {"status": said.pop("value"), **said}
    loading = variant.loading
    if loading is not None:
        share = loading.bytes_done / loading.bytes_total if loading.bytes_total else 0.0
        data["progress"] = {"stages": _STAGES, "current": loading.phase, "value": round(share, 4)}
    return data
