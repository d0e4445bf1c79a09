"""Variants and bases as clients see them."""

from typing import Literal

from msgspec import Struct

from workers.protocol.messages import MeasureResult


class QualityObject(Struct, frozen=True, kw_only=True):
    """Distance to the base, nats per token and share of equal tokens: as measured, else as verified before publication.

    measured: all that the newest POST /v1/measure found.
    """

    kl_mean: float | None
    top1_agreement: float | None
    measured: MeasureResult | None = None


class VariantObject(Struct, frozen=True, kw_only=True):
    """One variant. Fields that only a running worker knows are null while nothing is loaded.

    group_size: weights that share a scale, -1 for an output channel, null for a method without groups.
    kernel: the products of compressed layers; "emulated" is right and saves memory, and no time.
    """

    id: str
    object: Literal["variant"] = "variant"
    base: str
    method: str
    state: str
    reason: str | None
    created: int
    format: str
    bits: int
    group_size: int | None
    dtype: str | None
    device: str | None
    device_name: str | None
    lane: str | None
    lane_reason: str | None
    kernel: str | None
    architecture: str
    num_parameters: int
    max_model_len: int
    bytes_on_disk: int
    estimated_bytes: int
    weight_bytes: int | None
    kv_cache_bytes: int | None
    process_bytes: int | None
    measured_bytes: int | None
    pinned: bool
    load_s: float | None
    restarts: int
    running: int
    waiting: int
    quality: QualityObject | None
    tool_parser: str
    reasoning_parser: str


class BaseObject(Struct, frozen=True, kw_only=True):
    """One base model, as its files describe it."""

    id: str
    object: Literal["base"] = "base"
    source: str
    architecture: str
    weight_bytes: int
    num_parameters: int
    max_model_len: int
    created: int
