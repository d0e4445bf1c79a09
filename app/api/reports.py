"""POST /v1/measure: start a measurement; GET /v1/reports: what has been measured."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answer import json_answer
from app.api.body import json_body
from app.api.quantize import idempotency_key
from app.core.measurement import resolve_measure
from app.core.server import Server
from app.schemas.jobs import MeasureBody
from app.schemas.reports import ReportObject
from app.store import measurements

router = APIRouter()


@router.post("/v1/measure")
async def measure(request: Request, body: Annotated[MeasureBody, Depends(json_body(MeasureBody))]) -> Response:
    """Accept a job: 202 says that it is on disk. The same Idempotency-Key and body give the same job for a day."""
    server: Server = request.app.state.server
    key = idempotency_key(request)
    job = await server.jobs.submit(resolve_measure(body, server.catalog, server.settings), key)
    return json_answer(job, 202, {"location": f"/v1/jobs/{job.id}"})


@router.get("/v1/reports")
async def list_reports(request: Request, variant: str | None = None, history: bool = False) -> Response:
    """The newest measurement of each kind on each device, oldest first; with `variant`, of that one.

    With `history`, those before the newest too.
    """
    server: Server = request.app.state.server
    wanted = None if variant is None else server.catalog.entry(variant).row.id
    variants = {variant.id: variant for variant in server.catalog.list()}
    rows = await server.store.run(measurements.select_all)
    reports = [
        ReportObject(
            variant=row.variant,
            kind=row.kind,
            device=row.device,
            environment=row.environment,
            base=variants[row.variant].base,
            method=variants[row.variant].method,
            format=variants[row.variant].format,
            bits=variants[row.variant].bits,
            bytes_on_disk=variants[row.variant].bytes_on_disk or _base_bytes(server, variants[row.variant].base),
            created=row.created,
            values=row.values,
        )
        for row in (rows if history else measurements.newest(rows))
        if row.variant in variants and wanted in (None, row.variant)
    ]
    return json_answer({"object": "list", "data": reports})


def _base_bytes(server: Server, name: str) -> int:
    """The files of a base, which are those of its casts."""
    base = server.catalog.bases.get(name)
    return 0 if base is None else base.bytes_on_disk
