"""The bodies of POST /v1/quantize and /v1/measure, and jobs as clients see them."""

from typing import Annotated, Literal

from msgspec import Struct
from pydantic import Field

from app.schemas.body import OwnBody
from app.schemas.reports import MeasurementObject
from workers.protocol.messages import AllocationTrial, UnitBits

Streams = Annotated[int, Field(ge=1, le=1024)]
Pattern = Annotated[str, Field(min_length=1, max_length=256)]
# Ranges and types of options belong to the method; app.core.recipes checks them.
OptionInt = Annotated[int, Field(ge=-(2**31), le=2**53)]
OptionValue = (
    bool | OptionInt | Annotated[float, Field(ge=-1e9, le=1e9)] | str | Annotated[list[OptionInt], Field(max_length=16)]
)


class CalibrationBody(OwnBody):
    """The text that activations are observed on: `text` itself, a `path` on the server, or the built-in default.

    num_samples windows of sequence_length tokens are cut from it at places that `seed` chooses.
    """

    text: str | None = Field(None, min_length=1, max_length=4 * 2**20)
    source: Literal["default", "file"] | None = None
    path: str | None = Field(None, min_length=1, max_length=4096)
    num_samples: int = Field(32, ge=1, le=4096)
    sequence_length: int = Field(512, ge=16, le=131_072)
    seed: int = Field(0, ge=0, le=2**63 - 1)


class OverrideBody(OwnBody):
    """Another method, or none, for the modules whose names match a glob; the first that matches wins."""

    pattern: Pattern
    method: str | None = Field(max_length=64)
    options: dict[str, OptionValue] = Field({}, max_length=16)


class QuantizeBody(OwnBody):
    """model: a base or one of its casts. method: `gptq`, or a name that carries options, `gptq-int4-g128`.

    options: of the method. layout: the file format; the method's own if null. name: second part of the new variant's
    id. skip: globs of module names. quantize_head: the output head too. max_kl: mean nats per token to the base above
    which the variant is quarantined.
    """

    model: str = Field(min_length=1, max_length=256)
    method: str = Field(min_length=1, max_length=64)
    options: dict[str, OptionValue] = Field({}, max_length=16)
    layout: str | None = Field(None, min_length=1, max_length=64)
    calibration: CalibrationBody | None = None
    skip: list[Pattern] | None = Field(None, max_length=64)
    overrides: list[OverrideBody] = Field([], max_length=64)
    quantize_head: bool = False
    max_kl: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    name: str | None = Field(None, min_length=1, max_length=64)
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    force: bool = False


class MeasureBody(OwnBody):
    """model: a variant. quality: perplexity, and the distance to the base; speed: times, memory and bytes.

    text: "default", a text, or null with a `path` on the server. window, stride: tokens. kl: also compare with the
    base, over its `top_k` likeliest tokens and the mass of all others. streams: requests at once, one level each.
    prompt_tokens, new_tokens: of each timed request.
    """

    model: str = Field(min_length=1, max_length=256)
    text: str | None = Field(None, min_length=1, max_length=4 * 2**20)
    path: str | None = Field(None, min_length=1, max_length=4096)
    window: int | None = Field(None, ge=2, le=131_072)
    stride: int | None = Field(None, ge=1, le=131_072)
    max_tokens: int = Field(20_000, ge=2, le=2_000_000)
    kl: bool = True
    top_k: int = Field(128, ge=1, le=4096)
    quality: bool = True
    speed: bool = True
    streams: list[Streams] | None = Field(None, min_length=1, max_length=16)
    prompt_tokens: int | None = Field(None, ge=1, le=131_072)
    new_tokens: int | None = Field(None, ge=2, le=131_072)
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")


class ProgressObject(Struct, frozen=True, kw_only=True):
    """How far the present phase is. ratio: of the whole job, 0 to 1. eta_s: to the end of this phase.

    module: what was just compressed, in `seconds`, or the tensor just copied. layer: of num_layers, from 0; null
    outside the decoder's layers. error_before, error_after: relative error of the module, null where nothing was
    compressed: with plain rounding to the same grid (null for methods that do no more), and as it is now.
    """

    phase: str
    module: str | None
    layer: int | None
    num_layers: int | None
    error_before: float | None
    error_after: float | None
    seconds: float
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
    """What a job made, and how near it is to the base. kept: module -> why it was not compressed.

    layout: of the files. fallbacks: module -> why it was rounded to nearest without its method. calibration_tokens:
    module -> tokens that its method has seen, for methods that look at a text. folds: module that was divided by the
    scales of awq or smoothquant -> the linears that were multiplied by them. unfolded: linear -> why it got no scales.
    Of method auto: allocation, what each unit got; trials, the allocations that were compared, the chosen one first;
    bits, of most linears.
    """

    variant: str
    format: str
    layout: str = ""
    bits: int
    weight_bytes: int
    disk_bytes: int
    num_compressed: int
    kept: dict[str, str]
    fallbacks: dict[str, str] = {}
    calibration_tokens: dict[str, int] = {}
    folds: dict[str, list[str]] = {}
    unfolded: dict[str, str] = {}
    allocation: list[UnitBits] = []
    trials: list[AllocationTrial] = []
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
    result: JobResultObject | MeasurementObject | None
