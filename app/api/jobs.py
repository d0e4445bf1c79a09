"""GET /v1/jobs, /v1/jobs/{id} and its events, POST /v1/jobs/{id}/cancel."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from app.api.answer import json_answer
from app.core.server import Server
from app.errors import InvalidRequest

router = APIRouter()
_MAX_SEQ_DIGITS: Final = 12
_PING: Final = b": ping\n\n"


@router.get("/v1/jobs")
async def list_jobs(request: Request, limit: Annotated[int | None, Query(ge=0, le=10_000)] = None) -> Response:
    """Every job, newest first; with a limit all that have not ended, and so many of the others."""
    server: Server = request.app.state.server
    return json_answer({"object": "list", "data": await server.jobs.list(limit)})


@router.get("/v1/jobs/{job_id}")
async def get_job(request: Request, job_id: str) -> Response:
    """One job."""
    server: Server = request.app.state.server
    return json_answer(await server.jobs.get(job_id))


@router.post("/v1/jobs/{job_id}/cancel")
async def cancel_job(request: Request, job_id: str) -> Response:
    """End a job; when this answers, nothing of it is left on disk."""
    server: Server = request.app.state.server
    return json_answer(await server.jobs.cancel(job_id))


@router.get("/v1/jobs/{job_id}/events")
async def job_events(request: Request, job_id: str) -> Response:
    """The job's states and progress as server-sent events, from the start or from behind Last-Event-ID, to its end."""
    server: Server = request.app.state.server
    after = _last_event_id(request)
    await server.jobs.get(job_id)
    return StreamingResponse(
        _events(server, job_id, after),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _events(server: Server, job_id: str, after: int) -> AsyncIterator[bytes]:
    async for row in server.jobs.events(job_id, after, server.settings.ping_interval_s):
        yield _PING if row is None else f"id: {row.seq}\nevent: {row.type}\ndata: {row.data_json}\n\n".encode()


def _last_event_id(request: Request) -> int:
    text = request.headers.get("last-event-id", "").strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_SEQ_DIGITS):
        raise InvalidRequest("Last-Event-ID is the id of an event of this job.", param="Last-Event-ID")
    return int(text)
