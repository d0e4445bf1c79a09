"""What a variant is: its states, the legal moves between them, and the record that the rest of the product sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

from app.schemas.reports import Environment, SpeedReport
from app.supervisor.worker import Worker
from workers.protocol.messages import Loading, MeasureResult, ModelInfo

VariantKind = Literal["cast", "compressed", "echo"]
AUTO: Final = "auto"
CAST_METHODS: Final = ("fp32", "bf16", "fp16")


class VariantState(StrEnum):
    """Where a variant stands; only `ready` takes requests.

    `quarantined`: it was made and is not good enough; its files are kept for a look, and it is never loaded.
    """

    REGISTERED = "registered"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    UNLOADING = "unloading"
    FAILED = "failed"
    QUARANTINED = "quarantined"


_NEXT: Final[dict[VariantState, frozenset[VariantState]]] = {
    VariantState.REGISTERED: frozenset({VariantState.LOADING}),
    VariantState.LOADING: frozenset({VariantState.READY, VariantState.FAILED, VariantState.UNLOADING}),
    VariantState.READY: frozenset({VariantState.RESTARTING, VariantState.FAILED, VariantState.UNLOADING}),
    VariantState.RESTARTING: frozenset({VariantState.READY, VariantState.FAILED, VariantState.UNLOADING}),
    VariantState.UNLOADING: frozenset({VariantState.REGISTERED}),
    VariantState.FAILED: frozenset({VariantState.LOADING, VariantState.UNLOADING}),
    VariantState.QUARANTINED: frozenset(),
}

# No process belongs to a variant in one of these; it may be replaced or deleted.
IDLE: Final = frozenset({VariantState.REGISTERED, VariantState.FAILED, VariantState.QUARANTINED})


class IllegalMove(Exception):
    """Our own mistake: the code tried a move that the table does not have."""


def move(now: VariantState, then: VariantState) -> VariantState:
    """The new state. Raises IllegalMove if the table has no such step."""
    if then not in _NEXT[now]:
        raise IllegalMove(f"{now} -> {then}")
    return then


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How near a variant is to its base, nats per token and share of equal tokens: as verified before it was published.

    None for a cast, which is not verified. history: by POST /v1/measure, oldest first.
    """

    kl_mean: float | None
    top1_agreement: float | None
    history: tuple[MeasureResult, ...] = ()

    @property
    def measured(self) -> MeasureResult | None:
        """By the newest POST /v1/measure."""
        return self.history[-1] if self.history else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A measurement of speed on one device. created: Unix seconds."""

    report: SpeedReport
    environment: Environment
    created: float


def with_measurement(quality: Quality | None, result: MeasureResult) -> Quality:
    """The quality after a measurement; what was verified before stays."""
    if quality is None:
        return Quality(kl_mean=None, top1_agreement=None, history=(result,))
    return replace(quality, history=(*quality.history, result))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A snapshot of one variant: what it is, how it is doing, what it costs.

    id: `<base>/<name>`. method: how it was made (`int8`), or the dtype of a cast. folder: tokenizer.json, chat
    template and config.json. info: what the running worker reported, None while nothing is loaded. estimated_bytes:
    what a load is expected to take; bytes_on_disk: its files, 0 for a cast, which has none of its own; weight_bytes:
    its tensors as they are stored. group_size: weights that share a scale, -1 for an output channel, None where the
    method has no groups. running, waiting: sequences right now. process_bytes: what the worker holds now;
    measured_bytes: the most that one has held. speeds: by device, oldest first. loading: how far a load is, while there
    is one. tool_parser, reasoning_parser: what reads calls and thinking in its answers, `auto` by its chat template.
    """

    id: str
    base: str
    method: str
    kind: VariantKind
    created: int
    state: VariantState
    reason: str | None
    folder: Path
    architecture: str
    num_parameters: int
    max_model_len: int
    format: str
    bits: int
    bytes_on_disk: int
    estimated_bytes: int
    info: ModelInfo | None = None
    restarts: int = 0
    running: int = 0
    waiting: int = 0
    process_bytes: int | None = None
    quality: Quality | None = None
    loading: Loading | None = None
    weight_bytes: int = 0
    speeds: Mapping[str, Sequence[Speed]] = field(default_factory=dict)
    group_size: int | None = None
    tool_parser: str = AUTO
    reasoning_parser: str = AUTO
    is_pinned: bool = False
    measured_bytes: int | None = None

    @property
    def kl_mean(self) -> float | None:
        """Nats per token to the base: as measured, else as verified."""
        measured = self._measured
        if measured is not None and measured.kl_mean is not None:
            return measured.kl_mean
        return None if self.quality is None else self.quality.kl_mean

    @property
    def top1_agreement(self) -> float | None:
        """Share of tokens for which base and variant have the same first choice: as measured, else as verified."""
        measured = self._measured
        if measured is not None and measured.top1_agreement is not None:
            return measured.top1_agreement
        return None if self.quality is None else self.quality.top1_agreement

    @property
    def perplexity(self) -> float | None:
        """Of the newest measurement."""
        return None if self._measured is None else self._measured.perplexity

    @property
    def _measured(self) -> MeasureResult | None:
        return None if self.quality is None else self.quality.measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A variant that is ready now, and the process to ask."""

    variant: Variant
    worker: Worker

    @property
    def folder(self) -> Path:
        """Where tokenizer.json, the chat template and config.json lie."""
        return self.variant.folder

    @property
    def info(self) -> ModelInfo:
        """What the running worker reported."""
        return self.worker.info
