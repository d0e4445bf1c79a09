"""The body of POST /v1/quantize, and jobs as clients see them."""

from typing import Annotated, Literal

from msgspec import Struct
from pydantic import Field

from app.schemas.body import OwnBody

Pattern = Annotated[str, Field(min_length=1, max_length=256)]


class QuantizeBody(OwnBody):
    """model: a base or one of its casts. name: second part of the new variant's id. skip: globs of module names."""

    model: str = Field(min_length=1, max_length=256)
    method: Literal["int8"]
    name: str | None = Field(None, min_length=1, max_length=64)
    skip: list[Pattern] | None = Field(None, max_length=64)
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    force: bool = False


class ProgressObject(Struct, frozen=True, kw_only=True):
    """How far the present phase is. ratio: of the whole job, 0 to 1. eta_s: to the end of this phase."""

    phase: str
    unit: str
    done: int
    total: int
    ratio: float
    eta_s: float | None
    rss_bytes: int


class JobErrorObject(Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    code: str
    message: str


class JobResultObject(Struct, frozen=True, kw_only=True):
    """What a job made, and how near it is to the base. kept: module -> why it was not compressed."""

    variant: str
    format: str
    bits: int
    weight_bytes: int
    disk_bytes: int
    num_compressed: int
    kept: dict[str, str]
    mean_error: float
    kl_mean: float
    kl_max: float
    top1_agreement: float
    num_tokens: int


class JobObject(Struct, frozen=True, kw_only=True):
    """One job. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    state: str
    base: str
    variant: str
    method: str
    attempt: int
    progress: ProgressObject | None
    error: JobErrorObject | None
    created: float
    started: float | None
    finished: float | None
    result: JobResultObject | None
