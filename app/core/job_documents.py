"""The JSON documents inside a job's row, and the job as its clients see it."""

import hashlib
from typing import Final

import msgspec
from msgspec import Struct

from app.schemas.jobs import JobErrorObject, JobObject, JobResultObject, ProgressObject
from app.store.jobs import JobRow
from workers.protocol.messages import JobProgress

QUANTIZE: Final = "quantize"
# Share of a job's time that each phase begins and ends at, as measured on a small model; unknown phases are the last.
_PHASES: Final = {"compressing": (0.0, 0.8)}
_LAST_PHASES: Final = (0.8, 1.0)


class QuantizeSpec(Struct, frozen=True, kw_only=True):
    """What a client asked for, resolved: everything that decides the result."""

    base: str
    variant: str
    method: str
    skip: tuple[str, ...] = ()
    device: str
    seed: int = 0
    force: bool = False

    def digest(self) -> str:
        """SHA-256, equal for equal requests."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def encode(document: Struct) -> str:
    """JSON text."""
    return msgspec.json.encode(document).decode()


def spec_of(row: JobRow) -> QuantizeSpec:
    """What the job was asked to do."""
    return msgspec.json.decode(row.spec_json, type=QuantizeSpec)


def result_of(row: JobRow) -> JobResultObject | None:
    """What the job has made, from the moment it is verified."""
    return None if row.result_json is None else msgspec.json.decode(row.result_json, type=JobResultObject)


def job_object(row: JobRow, progress: ProgressObject | None = None) -> JobObject:
    """The job as its clients see it."""
    spec = spec_of(row)
    error = None
    if row.error_code is not None:
        error = JobErrorObject(code=row.error_code, message=row.error_message or "")
    return JobObject(
        id=row.id,
        kind=row.kind,
        state=row.state,
        base=spec.base,
        variant=spec.variant,
        method=spec.method,
        attempt=row.attempt,
        progress=progress,
        error=error,
        created=row.created,
        started=row.started,
        finished=row.finished,
        result=result_of(row),
    )


def progress_object(progress: JobProgress) -> ProgressObject:
    """One tick as clients see it."""
    begin, end = _PHASES.get(progress.phase, _LAST_PHASES)
    share = min(1.0, progress.done / progress.total) if progress.total > 0 else 0.0
    return ProgressObject(
        phase=progress.phase,
        unit=progress.unit,
        done=progress.done,
        total=progress.total,
        ratio=begin + share * (end - begin),
        eta_s=progress.eta_s,
        rss_bytes=progress.rss_bytes,
    )
