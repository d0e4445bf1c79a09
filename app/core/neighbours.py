"""Who else worked while something was timed: a measurement that had company must say so."""

from collections import Counter
from collections.abc import Callable, Iterable

from app.core.variants import Variant, VariantState
from app.schemas.reports import Neighbour
from workers.protocol.messages import Step

_LOADING = frozenset({VariantState.LOADING, VariantState.RESTARTING})


class Neighbours:
    """Counts the steps of all workers. `observe` is called for every step of every worker."""

    def __init__(self, variants: Callable[[], Iterable[Variant]]) -> None:
        self._variants = variants
        self._steps: Counter[str] = Counter()

    def observe(self, variant_id: str, step: Step) -> None:
        """One step; one that ran nothing does not count."""
        if step.stats.num_prefill_tokens or step.stats.num_decode_tokens:
            self._steps[variant_id] += 1

    def begin(self, own: str) -> "Company":
        """Watch from now on; own: what is being timed, under the name of its worker."""
        return Company(own, self._steps, self._variants)


class Company:
    """Neighbours since `begin`."""

    def __init__(self, own: str, steps: Counter[str], variants: Callable[[], Iterable[Variant]]) -> None:
        self._own = own
        self._steps = steps
        self._before = Counter(steps)
        self._variants = variants
        self._loading: set[str] = set()
        self._shared_steps = 0
        self.look()

    def look(self) -> None:
        """Note who is loading now."""
        self._loading |= {one.id for one in self._variants() if one.state in _LOADING}

    def share(self) -> None:
        """A step of the timed worker had somebody else's request in it."""
        self._shared_steps += 1

    def found(self) -> list[Neighbour]:
        """Everyone who was busy since the beginning."""
        self.look()
        steps = Counter({name: num - self._before[name] for name, num in self._steps.items() if name != self._own})
        if self._shared_steps:
            steps[self._own] = self._shared_steps
        busy = {name for name, num in steps.items() if num > 0}
        return [
            Neighbour(variant=name, num_steps=steps[name], is_loading=name in self._loading)
            for name in sorted(busy | self._loading)
        ]


def together(one: Iterable[Neighbour], other: Iterable[Neighbour]) -> list[Neighbour]:
    """Who was busy in either of two stretches of time, with the steps of both."""
    found: dict[str, Neighbour] = {}
    for now in (*one, *other):
        before = found.get(now.variant, Neighbour(variant=now.variant, num_steps=0))
        found[now.variant] = Neighbour(
            variant=now.variant,
            num_steps=before.num_steps + now.num_steps,
            is_loading=before.is_loading or now.is_loading,
        )
    return [found[name] for name in sorted(found)]
