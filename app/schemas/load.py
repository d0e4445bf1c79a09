"""Bodies of POST /v1/load, /v1/bases, /v1/unload and /v1/models/plan, and the plan as clients see it."""

from typing import Annotated, Literal, Self

from msgspec import Struct
from pydantic import Field, model_validator

from app.schemas.body import OwnBody
from app.schemas.sampling import broken_rule


class _SourceBody(OwnBody):
    """Where a model comes from."""

    model: str = Field(min_length=1, max_length=1024)
    name: str | None = Field(None, min_length=1, max_length=64)
    revision: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")


class _LoadOptions(OwnBody):
    """What decides how much memory a load takes; what is left open is the server's or the model's own."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str | None = Field(None, pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    max_model_len: int | None = Field(None, ge=16, le=2**24)
    kv_cache_bytes: int | None = Field(None, ge=2**16, le=2**44)


class LoadBody(_SourceBody, _LoadOptions):
    """model: a base, a variant, a local folder or a hub id. name: of a base that is new. wait: answer when it is ready.

    pin: never evict it, and do not unload it when idle. idle_unload_s: seconds without requests after which it is
    unloaded, 0 is never. evict: unload idle variants if it does not fit else. tool_parser, reasoning_parser: what reads
    calls and thinking in the model's answers; auto goes by its chat template.
    """

    lane: Literal["auto", "packed", "compat"] | None = None
    pin: bool | None = None
    idle_unload_s: float | None = Field(None, ge=0, le=2_592_000, allow_inf_nan=False)
    evict: bool | None = None
    tool_parser: Literal["auto", "none", "hermes", "qwen3_coder", "llama3", "mistral", "json"] | None = None
    reasoning_parser: Literal["auto", "none", "think", "mistral"] | None = None
    wait: bool = False

    @model_validator(mode="after")
    def _pinned_or_idle(self) -> Self:
        if self.pin and self.idle_unload_s:
            raise broken_rule("invalid_value", "It must be 0 or left out with 'pin': true", param="idle_unload_s")
        return self


class RegisterBody(_SourceBody):
    """model: a local folder or a hub id. name: of the new base. wait: answer when a download is there."""

    wait: bool = True


class UnloadBody(OwnBody):
    """wait: answer when the process is gone. force: do not let running requests end."""

    model: str = Field(min_length=1, max_length=256)
    wait: bool = True
    force: bool = False


class PlanBody(_LoadOptions):
    """models: bases or variants that are to be loaded side by side, each with these options."""

    models: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(min_length=1, max_length=64)


class PlannedModel(Struct, frozen=True, kw_only=True):
    """One model of a plan. needed_bytes: what its load takes beside what is there now, 0 if it is loaded already.

    source: "measured" when it was loaded before with these options on this device, "estimated", or "loaded".
    """

    id: str
    state: str
    needed_bytes: int
    source: Literal["measured", "estimated", "loaded"]


class PlanObject(Struct, frozen=True, kw_only=True):
    """What loads would do. fits: they have room, after what is in `evicts` has gone; reason says why not.

    budget_bytes: what the operator allows per device; free_bytes: what loads can have now, null where only the worker
    of a GPU can know. busy, pinned: loaded variants that stay, and workers of measurements, `VARIANT for job ID`.
    """

    object: Literal["plan"] = "plan"
    fits: bool
    reason: str | None
    device: str
    needed_bytes: int
    free_bytes: int | None
    budget_bytes: int | None
    evicts: list[str]
    busy: list[str]
    pinned: list[str]
    models: list[PlannedModel]
