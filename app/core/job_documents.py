"""The JSON documents inside a job's row, and the job as its clients see it."""

import hashlib
from typing import Final

import msgspec
from msgspec import Struct

from app.schemas.jobs import JobErrorObject, JobObject, JobResultObject, ProgressObject
from app.schemas.reports import MeasurementObject
from app.store.jobs import JobRow
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import Int8Recipe, Override, Recipe

QUANTIZE: Final = "quantize"
MEASURE: Final = "measure"
# Kind of the stored numbers with which a variant was published.
VERIFICATION: Final = "verification"
# Kind of the stored numbers of a measurement that are no quality.
SPEED: Final = "speed"
# Phases of a measurement of speed.
LOADING: Final = "loading"
TIMING: Final = "timing"
# Share of a job's time that each phase begins and ends at, by kind, as measured on a small model.
_PHASES: Final = {
    QUANTIZE: {
        # Before the first two are over, a job of method auto writes nothing.
        "measuring sensitivity": (0.0, 0.35),
        "trying allocations": (0.35, 0.75),
        "compressing": (0.0, 0.75),
        "writing": (0.75, 0.8),
        "hashing": (0.8, 0.81),
        "reading base": (0.81, 0.9),
        "reading variant": (0.9, 1.0),
    },
    MEASURE: {
        "reading base": (0.0, 0.2),
        "scoring base": (0.2, 0.25),
        "reading variant": (0.25, 0.3),
        "scoring variant": (0.3, 0.6),
        LOADING: (0.6, 0.65),
        TIMING: (0.65, 1.0),
    },
}


class CalibrationText(Struct, frozen=True, kw_only=True):
    """Where activations are observed: `text`, the file at `path`, or the built-in text; how many windows, how long."""

    text: str | None = None
    path: str | None = None
    num_samples: int = 32
    sequence_length: int = 512
    seed: int = 0


class QuantizeSpec(Struct, frozen=True, kw_only=True):
    """What a client asked for, resolved: everything that decides the result."""

    base: str
    variant: str
    method: str
    recipe: Recipe = Int8Recipe()
    layout: str | None = None
    overrides: tuple[Override, ...] = ()
    calibration: CalibrationText | None = None
    quantize_head: bool = False
    max_kl: float = 0.1
    skip: tuple[str, ...] = ()
    device: str
    seed: int = 0
    force: bool = False

    def digest(self) -> str:
        """SHA-256, equal for equal requests."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Workload(Struct, frozen=True, kw_only=True):
    """Requests to time: how many at once, level by level, and how long each is, in tokens."""

    streams: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int


class MeasureJob(Struct, frozen=True, kw_only=True):
    """A measurement that a client asked for, resolved. method: the variant's. window, stride, max_tokens: tokens.

    quality: score the text. speed: what to time, None for nothing.
    """

    base: str
    variant: str
    method: str
    text: str | None = None
    path: str | None = None
    window: int
    stride: int
    max_tokens: int
    kl: bool = True
    top_k: int = 128
    quality: bool = True
    speed: Workload | None = None
    device: str

    def digest(self) -> str:
        """SHA-256, equal for equal requests."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


JobDocument = QuantizeSpec | MeasureJob
_DOCUMENTS: Final[dict[str, type[QuantizeSpec] | type[MeasureJob]]] = {QUANTIZE: QuantizeSpec, MEASURE: MeasureJob}
_RESULTS: Final[dict[str, type[JobResultObject] | type[MeasurementObject]]] = {
    QUANTIZE: JobResultObject,
    MEASURE: MeasurementObject,
}


def encode(document: Struct) -> str:
    """JSON text."""
    return msgspec.json.encode(document).decode()


def kind_of(document: JobDocument) -> str:
    """The kind of job that works on such a document."""
    return MEASURE if isinstance(document, MeasureJob) else QUANTIZE


def spec_of(row: JobRow) -> JobDocument:
    """What the job was asked to do."""
    document: JobDocument = msgspec.json.decode(row.spec_json, type=_DOCUMENTS[row.kind])
    return document


def result_of(row: JobRow) -> JobResultObject | MeasurementObject | None:
    """What the job has made or found, from the moment it is whole."""
    if row.result_json is None:
        return None
    result: JobResultObject | MeasurementObject = msgspec.json.decode(row.result_json, type=_RESULTS[row.kind])
    return result


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


def progress_object(kind: str, progress: JobProgress) -> ProgressObject:
    """One tick of a job of this kind as clients see it."""
    begin, end = _PHASES[kind].get(progress.phase, (0.0, 1.0))
    share = min(1.0, progress.done / progress.total) if progress.total > 0 else 0.0
    return ProgressObject(
        phase=progress.phase,
        module=progress.module or None,
        layer=progress.layer,
        num_layers=progress.num_layers,
        error_before=progress.error_before,
        error_after=progress.error_after,
        seconds=progress.seconds,
        done=progress.done,
        total=progress.total,
        ratio=begin + share * (end - begin),
        eta_s=progress.eta_s,
        rss_bytes=progress.rss_bytes,
    )
