"""What `<base>/auto` means: the best variant that satisfies the constraints somebody has stored, or the default ones.

Of those that qualify, the best that is loaded comes first: so a new and better variant keeps no request waiting, and
evicts nobody, until somebody has loaded it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from app.core.comparison import Comparison
from app.core.ranking import DEFAULT_MAX_KL, Constraints, rank
from app.core.variants import Variant, VariantState
from app.errors import Conflict
from app.store import choices as choice_rows
from app.store.database import Store

SUFFIX: Final = "/auto"
_RELUCTANCE: Final = {VariantState.READY: 0, VariantState.FAILED: 2}
_DEFAULT: Final = Constraints(max_kl=DEFAULT_MAX_KL)


class Choices:
    """The stored constraints, by base, in memory; on disk before they count."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored: dict[str, Constraints] = {}

    async def start(self) -> None:
        """Read what is stored."""
        rows = await self._store.run(choice_rows.select_all)
        self._stored = {base: Constraints(**values) for base, values in rows.items()}

    async def put(self, base: str, constraints: Constraints) -> None:
        """Store the constraints of a base; without any limit the default counts again."""
        if constraints.is_empty:
            await self._store.run(choice_rows.delete, base)
            self._stored.pop(base, None)
            return
        await self._store.run(choice_rows.put, base, limits(constraints))
        self._stored[base] = constraints

    def of(self, base: str) -> Constraints:
        """The constraints that count."""
        return self._stored.get(base, _DEFAULT)

    def is_default(self, base: str) -> bool:
        """True if nobody has stored any."""
        return base not in self._stored


def with_default(constraints: Constraints) -> Constraints:
    """The constraints, or the default ones where nothing has a limit; the number of streams stays."""
    return constraints if not constraints.is_empty else Constraints(max_kl=DEFAULT_MAX_KL, streams=constraints.streams)


def limits(constraints: Constraints) -> dict[str, float | int]:
    """What has a limit, and the streams."""
    return {name: value for name, value in asdict(constraints).items() if value is not None}


def qualified(comparison: Comparison, constraints: Constraints) -> list[Variant]:
    """The variants that satisfy the constraints, best first."""
    by_id = {one.id: one for one in comparison.variants}
    return [by_id[verdict.candidate.variant] for verdict in rank(comparison.candidates(), constraints)]


def choose(found: Sequence[Variant]) -> Variant | None:
    """Of qualified variants, best first: one that serves, else one whose load has not failed, else the first."""
    return min(found, key=lambda one: _RELUCTANCE.get(one.state, 1), default=None)


def none_qualifies(base: str) -> Conflict:
    """The error for an `auto` that means nothing now."""
    return Conflict(
        f"No variant of '{base}' is known to satisfy the constraints of '{base}{SUFFIX}'; POST /v1/recommend says what "
        "each of them lacks, POST /v1/auto sets other constraints.",
        code="no_variant_qualifies",
        param="model",
    )
