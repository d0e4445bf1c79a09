"""Which variant is best for a purpose: constraints, the Pareto set, an order. Pure functions of measured numbers.

A number that nobody has measured is None, and None is never guessed: a variant without it is neither better nor worse
in that respect, but not comparable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# Mean nats per token to the base. At 0.02 the exponential, by which perplexity grows on the base's own text, is 2 %.
DEFAULT_MAX_KL: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSpeed:
    """At so many streams: tokens per second of all of them together, median time to first token."""

    tokens_per_s: float
    ttft_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of one variant.

    bits: of a stored weight. kl: mean KL(base || variant), nats per token. perplexity_increase: perplexity / base
    perplexity - 1. memory_bytes: the most that its worker has held, else the estimate. speeds: by number of streams.
    """

    variant: str
    method: str
    bits: int
    weight_bytes: int
    memory_bytes: int
    is_memory_measured: bool = False
    kl: float | None = None
    perplexity_increase: float | None = None
    speeds: Mapping[int, LevelSpeed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What a variant must satisfy; None is no limit. streams: at how many the speed counts."""

    max_memory_bytes: int | None = None
    min_tokens_per_s: float | None = None
    max_ttft_ms: float | None = None
    max_kl: float | None = None
    max_perplexity_increase: float | None = None
    streams: int = 1

    @property
    def limits_quality(self) -> bool:
        """True if the distance to the base has a limit."""
        return self.max_kl is not None or self.max_perplexity_increase is not None

    @property
    def is_empty(self) -> bool:
        """True if nothing has a limit."""
        limits = (self.max_memory_bytes, self.min_tokens_per_s, self.max_ttft_ms)
        return not self.limits_quality and all(limit is None for limit in limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One candidate against the constraints: what it keeps, what it breaks, what nobody has measured."""

    candidate: Candidate
    kept: tuple[str, ...]
    broken: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def qualifies(self) -> bool:
        """True if every limit is known to be kept."""
        return not self.broken and not self.unknown


Point = tuple[float | None, ...]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """True if `one` is nowhere larger than `other` and somewhere smaller; equals do not dominate each other."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


def better_than(points: Mapping[str, Point]) -> dict[str, list[str] | None]:
    """For each name the points that dominate it, in order; smaller is better everywhere. None: a coordinate is unknown.

    A point with an unknown coordinate takes no part: it dominates nothing and is not judged.
    """
    whole: dict[str, tuple[float, ...]] = {}
    for name, point in points.items():
        values = tuple(value for value in point if value is not None)
        if len(values) == len(point):
            whole[name] = values
    return {
        name: [other for other, point in whole.items() if dominates(point, whole[name])] if name in whole else None
        for name in points
    }


def pareto(points: Mapping[str, Point]) -> dict[str, bool | None]:
    """For each name whether no other point dominates it; None if a coordinate is unknown."""
    return {name: None if better is None else not better for name, better in better_than(points).items()}


def objectives(candidates: Iterable[Candidate], streams: int) -> tuple[str, ...]:
    """What is traded: size and quality, and speed as soon as any candidate's speed at so many streams is known."""
    has_speed = any(streams in candidate.speeds for candidate in candidates)
    return ("weight_bytes", "kl_mean", "tokens_per_s") if has_speed else ("weight_bytes", "kl_mean")


def trade_offs(candidates: Sequence[Candidate], streams: int) -> dict[str, Point]:
    """By variant the objectives as a point to minimize."""
    has_speed = len(objectives(candidates, streams)) > 2
    return {one.variant: _point(one, streams if has_speed else None) for one in candidates}


def pareto_set(candidates: Sequence[Candidate], streams: int) -> dict[str, bool | None]:
    """By variant: whether no other is at least as good in all objectives and better in one."""
    return pareto(trade_offs(candidates, streams))


def judge(candidate: Candidate, constraints: Constraints) -> Verdict:
    """Hold one candidate against every limit."""
    kept: list[str] = []
    broken: list[str] = []
    unknown: list[str] = []
    for name, value, limit, is_upper in _limits(candidate, constraints):
        if limit is None:
            continue
        if value is None:
            unknown.append(name)
            continue
        is_kept = value <= limit if is_upper else value >= limit
        relation = ("<=" if is_upper else ">=") if is_kept else (">" if is_upper else "<")
        (kept if is_kept else broken).append(f"{name} {_number(value)} {relation} {_number(limit)}")
    return Verdict(candidate=candidate, kept=tuple(kept), broken=tuple(broken), unknown=tuple(unknown))


def rank(candidates: Iterable[Candidate], constraints: Constraints) -> list[Verdict]:
    """Those that qualify, best first: what has no limit is what is made best.

    With a limit of quality the smallest comes first, then the fastest, then the nearest to the base; without one the
    nearest to the base comes first, then the smallest, then the fastest. Names break the last ties.
    """
    verdicts = (judge(candidate, constraints) for candidate in candidates)
    return sorted((one for one in verdicts if one.qualifies), key=lambda one: _order(one.candidate, constraints))


def _order(candidate: Candidate, constraints: Constraints) -> tuple[float, float, float, str]:
    speed = candidate.speeds.get(constraints.streams)
    slowness = -speed.tokens_per_s if speed is not None else 0.0
    distance = float("inf") if candidate.kl is None else candidate.kl
    if constraints.limits_quality:
        return candidate.weight_bytes, slowness, distance, candidate.variant
    return distance, candidate.weight_bytes, slowness, candidate.variant


def _point(candidate: Candidate, streams: int | None) -> Point:
    if streams is None:
        return float(candidate.weight_bytes), candidate.kl
    speed = candidate.speeds.get(streams)
    return float(candidate.weight_bytes), candidate.kl, None if speed is None else -speed.tokens_per_s


def _limits(candidate: Candidate, constraints: Constraints) -> Sequence[tuple[str, float | None, float | None, bool]]:
    """Name, value, limit, and whether the limit is an upper one."""
    speed = candidate.speeds.get(constraints.streams)
    at = f"at {constraints.streams} streams" if constraints.streams > 1 else "at 1 stream"
    memory = "memory_bytes" if candidate.is_memory_measured else "estimated memory_bytes"
    return (
        (memory, candidate.memory_bytes, constraints.max_memory_bytes, True),
        (f"tokens_per_s {at}", speed.tokens_per_s if speed else None, constraints.min_tokens_per_s, False),
        (f"ttft_ms {at}", speed.ttft_ms if speed else None, constraints.max_ttft_ms, True),
        ("kl_mean", candidate.kl, constraints.max_kl, True),
        ("perplexity_increase", candidate.perplexity_increase, constraints.max_perplexity_increase, True),
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
