"""Variants and bases as clients see them."""

from typing import Literal

from msgspec import Struct


class QualityObject(Struct, frozen=True, kw_only=True):
    """Distance to the base, measured before the variant was published: nats per token, share of equal tokens."""

    kl_mean: float
    top1_agreement: float


class VariantObject(Struct, frozen=True, kw_only=True):
    """One variant. Fields that only a running worker knows are null while nothing is loaded."""

    id: str
    object: Literal["variant"] = "variant"
    base: str
    method: str
    state: str
    reason: str | None
    created: int
    format: str
    bits: int
    dtype: str | None
    device: str | None
    device_name: str | None
    lane: str | None
    lane_reason: str | None
    architecture: str
    num_parameters: int
    max_model_len: int
    bytes_on_disk: int
    estimated_bytes: int
    weight_bytes: int | None
    kv_cache_bytes: int | None
    process_bytes: int | None
    load_s: float | None
    restarts: int
    running: int
    waiting: int
    quality: QualityObject | None


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
