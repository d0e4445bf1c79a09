"""Which variant that does not exist yet is worth making, reasoned from those that do. Pure functions.

Each rule looks at what was measured and says why it speaks; none of them knows the outcome: a made variant is measured
like any other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from app.core.ranking import DEFAULT_MAX_KL, Candidate, Constraints, judge

# An 8-bit variant that uses less than this share of the distance allowed leaves room for half the bits.
_ROOM_SHARE: Final = 0.25
# From here on a GPU is limited by arithmetic, which 8-bit floats double and weights of few bits do not.
_MANY_STREAMS: Final = 32
_CALIBRATED: Final = frozenset({"gptq", "awq"})
_AUTO: Final = "auto"
# Bits per weight in groups of 32 with a scale of 16 bits. Above the last one an 8-bit variant is hardly larger.
_GROUPED_4: Final = 4 + 16 / 32
_GROUPED_8: Final = 8 + 16 / 32
_BITS_STEP: Final = 0.25
_MOST_BITS_BETWEEN: Final = 7.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A method as POST /v1/quantize takes it, and why."""

    method: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known. base: the uncompressed variant. made: compressed ones. quarantined: those that nobody may use."""

    base: Candidate
    made: Sequence[Candidate]
    constraints: Constraints
    is_cuda: bool
    quarantined: Sequence[Candidate] = ()

    @property
    def max_kl(self) -> float:
        """The distance allowed; the default limit where none is asked for."""
        return DEFAULT_MAX_KL if self.constraints.max_kl is None else self.constraints.max_kl

    def of_bits(self, bits: int, methods: frozenset[str] | None = None) -> list[Candidate]:
        """What has been made with so many bits by any method or by these, and be it in quarantine."""
        tried = (*self.made, *self.quarantined)
        return [one for one in tried if one.bits == bits and (methods is None or one.method in methods)]

    def is_near(self, candidate: Candidate) -> bool:
        """Whether the limits of quality are kept; the default limit where there is none."""
        limits = replace(self.constraints, max_memory_bytes=None, min_tokens_per_s=None, max_ttft_ms=None)
        return judge(candidate, limits if limits.limits_quality else Constraints(max_kl=DEFAULT_MAX_KL)).qualifies

    def expected_bytes(self, bits: int) -> int:
        """Weights at so many bits: from what the smallest variant shows of the share that is compressed at all."""
        whole = self.base.weight_bytes
        known = min(self.made, key=lambda one: one.weight_bytes, default=None)
        share = 1.0
        if known is not None and known.bits < self.base.bits:
            share = (1 - known.weight_bytes / whole) / (1 - known.bits / self.base.bits)
        share = min(1.0, max(0.0, share))
        return round(whole * (1 - share + share * bits / self.base.bits))


def suggest(situation: Situation) -> list[Suggestion]:
    """What to make next, most useful first; empty if what is measured gives no reason for anything."""
    found = [one for rule in _RULES if (one := rule(situation)) is not None]
    return list({one.method: one for one in reversed(found)}.values())[::-1]


def _eight_bits(situation: Situation) -> Suggestion | None:
    if situation.of_bits(8):
        return None
    if not situation.made:
        return Suggestion(
            method="int8",
            reason="nothing is compressed yet; 8 bits need no text and stay nearest to the base, at about "
            f"{situation.expected_bytes(8):,} bytes",
        )
    if any(situation.is_near(one) for one in situation.made):
        return None
    return Suggestion(method="int8", reason="no variant is near enough to the base, and none has 8 bits")


def _four_bits(situation: Situation) -> Suggestion | None:
    limit = situation.max_kl
    near = [one for one in situation.of_bits(8) if one.kl is not None and one.kl <= _ROOM_SHARE * limit]
    if not near or not limit or situation.of_bits(4):
        return None
    best = min(near, key=lambda one: one.kl or 0.0)
    return Suggestion(
        method="gptq-int4-g128",
        reason=f"{best.variant} uses {100 * (best.kl or 0.0) / limit:.0f} % of the KL allowed, {limit:g}; "
        f"4 bits would take about {situation.expected_bytes(4):,} bytes",
    )


def _calibrated(situation: Situation) -> Suggestion | None:
    known = _CALIBRATED | {_AUTO}
    far = [one for one in situation.of_bits(4) if one.method not in known and not situation.is_near(one)]
    if not far or situation.of_bits(4, _CALIBRATED):
        return None
    return Suggestion(
        method="gptq-int4-g128",
        reason=f"{far[0].variant} is too far from the base; GPTQ chooses the same 4 bits by what a text needs",
    )


def _smaller_groups(situation: Situation) -> Suggestion | None:
    tried = situation.of_bits(4, _CALIBRATED)
    if not tried or any(situation.is_near(one) for one in tried) or any("g32" in one.variant for one in tried):
        return None
    nearest = min(tried, key=lambda one: float("inf") if one.kl is None else one.kl)
    return Suggestion(
        method=f"{nearest.method}-int4-g32",
        reason=f"{nearest.variant} is the nearest with 4 bits and not near enough; groups of 32 have more scales",
    )


def _between(situation: Situation) -> Suggestion | None:
    """Where 8 bits are near enough and 4 are not, the mixture of both that should just be."""
    limit = situation.max_kl
    known = {bits: [one for one in situation.made if one.bits == bits and one.kl is not None] for bits in (4, 8)}
    if _smaller_groups(situation) is not None:
        return None
    eight = [one for one in known[8] if (one.kl or 0.0) <= _ROOM_SHARE * limit]
    if not eight or not known[4] or any(one.method == _AUTO for one in situation.made if situation.is_near(one)):
        return None
    four = min(known[4], key=lambda one: one.kl or 0.0)
    if four.kl is None or four.kl <= limit:
        return None
    # as if each linear had the same share of the distance; those that are chosen have a larger one
    share = 1 - limit / four.kl
    bits = math.ceil((_GROUPED_4 + share * (_GROUPED_8 - _GROUPED_4)) / _BITS_STEP) * _BITS_STEP
    while any(one.variant.endswith(f"/{_between_name(bits)}") for one in (*situation.made, *situation.quarantined)):
        bits += _BITS_STEP
    if bits > _MOST_BITS_BETWEEN:
        return None
    return Suggestion(
        method=_between_name(bits),
        reason=f"{eight[0].variant} uses {100 * (eight[0].kl or 0.0) / limit:.0f} % of the KL allowed, {limit:g}, and "
        f"{four.variant} with {four.kl:.3g} too much; a choice of bits for each linear lies between",
    )


def _between_name(bits: float) -> str:
    return f"{_AUTO}-{bits:g}bits-g32"


def _fewer_bits_for_memory(situation: Situation) -> Suggestion | None:
    limit = situation.constraints.max_memory_bytes
    smallest = min((situation.base, *situation.made), key=lambda one: one.memory_bytes)
    if limit is None or smallest.memory_bytes <= limit:
        return None
    beside_weights = smallest.memory_bytes - smallest.weight_bytes
    for bits in (4, 3):
        if not situation.of_bits(bits) and situation.expected_bytes(bits) + beside_weights <= limit:
            return Suggestion(
                method=f"gptq-int{bits}-g128",
                reason=f"{smallest.variant} takes {smallest.memory_bytes:,} bytes, more than {limit:,}; {bits} bits "
                f"would take about {situation.expected_bytes(bits) + beside_weights:,}",
            )
    return None


def _speed(situation: Situation) -> Suggestion | None:
    wanted, streams = situation.constraints.min_tokens_per_s, situation.constraints.streams
    timed = [one for one in (situation.base, *situation.made) if streams in one.speeds]
    if wanted is None or not timed or any(one.speeds[streams].tokens_per_s >= wanted for one in timed):
        return None
    fastest = max(timed, key=lambda one: one.speeds[streams].tokens_per_s)
    missed = f"{fastest.variant} is the fastest and gives {fastest.speeds[streams].tokens_per_s:.1f} tokens/s"
    if situation.is_cuda and streams >= _MANY_STREAMS:
        if any(one.method == "fp8" for one in situation.made):
            return None
        return Suggestion(method="fp8", reason=f"{missed}; with {streams} streams 8-bit floats save arithmetic too")
    for bits, method in ((8, "int8"), (4, "gptq-int4-g128")):
        if fastest.bits > bits and not situation.of_bits(bits):
            return Suggestion(method=method, reason=f"{missed}; {bits} bits are fewer bytes to read for each token")
    return None


_RULES: Final[tuple[Callable[[Situation], Suggestion | None], ...]] = (
    _eight_bits,
    _fewer_bits_for_memory,
    _speed,
    _calibrated,
    _smaller_groups,
    _four_bits,
    _between,
)
