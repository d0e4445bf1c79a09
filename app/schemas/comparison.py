"""The variants of a base side by side, as clients see them, and what clients may ask of them."""

from typing import Annotated, Any, Literal, Self

from msgspec import Struct
from pydantic import Field, model_validator

from app.schemas.body import OwnBody
from app.schemas.chat import MAX_MESSAGES, Message
from app.schemas.reports import SpeedLevel
from app.schemas.sampling import MAX_SEED, MAX_STOPS, StopString, broken_rule

Name = Annotated[str, Field(min_length=1, max_length=256)]


class LevelRow(Struct, frozen=True, kw_only=True):
    """One level of a SpeedReport, medians."""

    streams: int
    tokens_per_s: float
    ttft_ms: float | None
    tpot_ms: float | None
    tokens_per_joule: float | None

    @classmethod
    def of(cls, level: SpeedLevel) -> "LevelRow":
        """The level in short."""
        return cls(
            streams=level.streams,
            tokens_per_s=level.tokens_per_s,
            ttft_ms=level.ttft_ms.p50,
            tpot_ms=level.tpot_ms.p50,
            tokens_per_joule=level.tokens_per_joule,
        )


class ComparisonRow(Struct, frozen=True, kw_only=True):
    """One variant. is_pareto: no other is at least as good in all objectives and better in one; null: not measured.

    weight_bytes: as stored. peak_bytes, load_s, levels, x_of_floor, neighbours: of the report of speed (SpeedReport);
    measured: its date. kl_source: `measured`, `verified` before it was published (256 tokens), or `is the base`.
    missing: `quality`, `speed`, what POST /v1/measure would add; measured_otherwise: which of these are known, but of
    another text, windows, workload or machine than those of most variants.
    """

    variant: str
    method: str
    format: str
    bits: int
    state: str
    is_pareto: bool | None
    weight_bytes: int
    bits_per_weight: float
    bytes_on_disk: int
    peak_bytes: int | None
    load_s: float | None
    perplexity: float | None
    perplexity_interval: tuple[float, float] | None
    kl_mean: float | None
    kl_mean_interval: tuple[float, float] | None
    kl_source: str | None
    top1_agreement: float | None
    levels: list[LevelRow]
    x_of_floor: float | None
    neighbours: list[str]
    measured: float | None
    missing: list[str]
    measured_otherwise: list[str]


class ComparisonObject(Struct, frozen=True, kw_only=True):
    """All variants of a base but quarantined ones. objectives: what the Pareto set trades, speed at `streams`."""

    object: Literal["comparison"] = "comparison"
    base: str
    device: str
    streams: int
    objectives: list[str]
    pareto: list[str]
    data: list[ComparisonRow]


class ConstraintsBody(OwnBody):
    """base: whose variants. max_memory_bytes: of the worker; min_tokens_per_s: of all streams together.

    max_ttft_ms: the median. max_kl: nats per token. max_perplexity_increase: 0.01 is one percent. streams: at which the
    speed counts. Without any limit, max_kl is 0.02.
    """

    base: str = Field(min_length=1, max_length=256)
    max_memory_bytes: int | None = Field(None, ge=1, le=2**50)
    min_tokens_per_s: float | None = Field(None, gt=0, le=1e9, allow_inf_nan=False)
    max_ttft_ms: float | None = Field(None, gt=0, le=1e9, allow_inf_nan=False)
    max_kl: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    max_perplexity_increase: float | None = Field(None, ge=-1, le=1e6, allow_inf_nan=False)
    streams: int = Field(1, ge=1, le=1024)


class RankedObject(Struct, frozen=True, kw_only=True):
    """A variant that qualifies. reasons: the limits that it keeps, with its numbers, and what speaks for or against."""

    variant: str
    rank: int
    is_pareto: bool | None
    state: str
    reasons: list[str]


class RejectedObject(Struct, frozen=True, kw_only=True):
    """A variant that breaks a limit."""

    variant: str
    reasons: list[str]


class UnmeasuredObject(Struct, frozen=True, kw_only=True):
    """A variant that may qualify. missing: the limits that cannot be checked without POST /v1/measure."""

    variant: str
    missing: list[str]


class SuggestionObject(Struct, frozen=True, kw_only=True):
    """A variant that is worth making: a method for POST /v1/quantize, and the reason."""

    method: str
    reason: str


class RecommendationObject(Struct, frozen=True, kw_only=True):
    """Which variants of a base satisfy the constraints, best first. auto: what `<base>/auto` means now, by its own."""

    object: Literal["recommendation"] = "recommendation"
    base: str
    device: str
    constraints: dict[str, float | int]
    ranked: list[RankedObject]
    rejected: list[RejectedObject]
    unmeasured: list[UnmeasuredObject]
    pareto: list[str]
    suggestions: list[SuggestionObject]


class ChoiceObject(Struct, frozen=True, kw_only=True):
    """What `<base>/auto` means. constraints: stored, or the default. best: of all that qualify; variant: of those, the
    best that is loaded, else the best; null with none.
    """

    object: Literal["choice"] = "choice"
    base: str
    model: str
    is_default: bool
    constraints: dict[str, float | int]
    variant: str | None
    best: str | None


class CompareGenerateBody(OwnBody):
    """base: all of its variants that are loaded; or `variants` of one base. prompt, or messages for the chat template.

    Greedy unless a temperature is given; the same seed for all.
    """

    base: str | None = Field(None, min_length=1, max_length=256)
    variants: list[Name] | None = Field(None, min_length=1, max_length=16)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int = Field(64, ge=1, le=4096)
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    stop: list[StopString] = Field([], max_length=MAX_STOPS)
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _exactly_one_of_each(self) -> Self:
        for one, other in (("base", "variants"), ("prompt", "messages")):
            if getattr(self, one) is None and getattr(self, other) is None:
                raise broken_rule("missing_required_parameter", f"Give '{one}' or '{other}'", param=one)
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise broken_rule("invalid_value", f"Give either '{one}' or '{other}', not both", param=other)
        return self


class AnswerObject(Struct, frozen=True, kw_only=True):
    """What one variant said. parent_logprobs: ln p(token) by the uncompressed model, null where it is not loaded;
    first_divergence: number of the first token that differs from the reference's, null if none does.
    """

    variant: str
    text: str
    token_ids: list[int]
    finish_reason: str | None
    first_divergence: int | None
    parent_logprobs: list[float] | None
    parent_logprob_mean: float | None
    usage: dict[str, Any]
    timings: dict[str, float | None]


class SideBySideObject(Struct, frozen=True, kw_only=True):
    """One prompt, several variants. parent: who scored; reference: whose answer the others are held against."""

    object: Literal["side_by_side"] = "side_by_side"
    base: str
    parent: str | None
    reference: str
    data: list[AnswerObject]
