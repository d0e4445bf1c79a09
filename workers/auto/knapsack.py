"""One choice for each unit, of least total cost within a budget of bytes: the multiple-choice knapsack problem.

Lagrange's relaxation prices a byte: at the price at which the budget is just kept, each unit's best choice stands by
itself, and cost plus price is a lower bound of any completion. Dynamic programming over the units then keeps the
partial sums that no other beats in both bytes and cost and whose bound is below the best whole choice known (Sinha and
Zoltners, The multiple-choice knapsack problem, 1979; Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, ch. 11).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Costs are measurements with two or three digits: what is nearer than this to the best is as good.
_TOLERANCE = 1e-6
_BISECTIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to store a unit. cost: what it adds to the sum that is minimized, at least 0."""

    num_bytes: int
    cost: float


Units = Sequence[Sequence[Choice]]


def smallest_bytes(units: Units) -> int:
    """Bytes of the smallest choice of every unit: no budget below it can be kept."""
    return sum(min(choice.num_bytes for choice in choices) for choices in units)


def choose(units: Units, max_bytes: int) -> list[int]:
    """The index of each unit's choice; the sum of costs is within a millionth of the least that max_bytes allows.

    units: at least one choice each. Of equal sums the one of fewer bytes is taken. Raises ValueError for a budget below
    `smallest_bytes`.
    """
    if max_bytes < smallest_bytes(units):
        raise ValueError(f"{max_bytes} bytes are fewer than the smallest choices take, {smallest_bytes(units)}")
    price, found = _at_price(units, max_bytes)
    found = _filled(units, found, max_bytes)
    best_cost = _total_cost(units, found)
    improved = _search(units, max_bytes, price, best_cost)
    return found if improved is None else improved


def total_bytes(units: Units, chosen: Sequence[int]) -> int:
    """Of the chosen choices."""
    return sum(choices[index].num_bytes for choices, index in zip(units, chosen, strict=True))


def _total_cost(units: Units, chosen: Sequence[int]) -> float:
    return sum(choices[index].cost for choices, index in zip(units, chosen, strict=True))


def _best_at(units: Units, price: float) -> list[int]:
    """Each unit's choice of least cost + price x bytes; the smaller one of two that are equal."""

    def priced(choice: Choice) -> tuple[float, int]:
        return choice.cost + price * choice.num_bytes, choice.num_bytes

    return [choices.index(min(choices, key=priced)) for choices in units]


def _at_price(units: Units, max_bytes: int) -> tuple[float, list[int]]:
    """The lowest price of a byte at which the budget is kept, and the choices at it."""
    found = _best_at(units, 0.0)
    if total_bytes(units, found) <= max_bytes:
        return 0.0, found
    low, high = 0.0, 1e-12
    while total_bytes(units, found := _best_at(units, high)) > max_bytes:
        low, high = high, high * 16
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        kept = _best_at(units, middle)
        if total_bytes(units, kept) > max_bytes:
            low = middle
        else:
            high, found = middle, kept
    return high, found


def _filled(units: Units, chosen: list[int], max_bytes: int) -> list[int]:
    """Spend what the price has left over: the step that saves most cost per byte, while one fits."""
    filled, left = list(chosen), max_bytes - total_bytes(units, chosen)
    while True:
        best: tuple[float, int, int] | None = None
        for unit, choices in enumerate(units):
            now = choices[filled[unit]]
            for index, other in enumerate(choices):
                saved, extra = now.cost - other.cost, other.num_bytes - now.num_bytes
                if saved > 0 and extra <= left:
                    rate = saved / max(extra, 1)
                    best = max(best, (rate, unit, index)) if best is not None else (rate, unit, index)
        if best is None:
            return filled
        _, unit, index = best
        left -= units[unit][index].num_bytes - units[unit][filled[unit]].num_bytes
        filled[unit] = index


def _search(units: Units, max_bytes: int, price: float, best_cost: float) -> list[int] | None:
    """A better choice than one of best_cost, or None. Partial sums are (bytes, cost), sorted by bytes."""
    # rest[i]: least cost + price x bytes, and least bytes, of all units from i on.
    priced = [min(one.cost + price * one.num_bytes for one in choices) for choices in units]
    smallest = [min(one.num_bytes for one in choices) for choices in units]
    rest_priced, rest_bytes = _suffix_sums(priced), _suffix_sums(smallest)
    limit = best_cost * (1 - _TOLERANCE)
    sums: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    costs: npt.NDArray[np.float64] = np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for number, choices in enumerate(units):
        count = len(sums)
        new_sums = np.concatenate([sums + one.num_bytes for one in choices])
        new_costs = np.concatenate([costs + one.cost for one in choices])
        bound = new_costs + rest_priced[number + 1] - price * (max_bytes - new_sums)
        kept = np.flatnonzero((new_sums + int(rest_bytes[number + 1]) <= max_bytes) & (bound < limit))
        if not len(kept):
            return None
        kept = kept[np.lexsort((new_costs[kept], new_sums[kept]))]
        # Behind a sum that is smaller, only a lower cost is worth keeping.
        ordered = new_costs[kept]
        before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
        kept = kept[ordered < before]
        sums, costs = new_sums[kept], new_costs[kept]
        steps.append((kept // count, kept % count))
    # The bound credits bytes that are left over: what has come through need not be better.
    if costs[-1] >= best_cost:
        return None
    position = len(sums) - 1
    chosen: list[int] = []
    for taken, parents in reversed(steps):
        chosen.append(int(taken[position]))
        position = int(parents[position])
    return chosen[::-1]


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """sums[i] = values[i] + values[i + 1] + ..., and 0 behind the last."""
    sums = [0.0]
    for value in reversed(values):
        sums.append(sums[-1] + value)
    return sums[::-1]
