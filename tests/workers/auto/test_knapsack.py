"""The choice of bits within a budget, against all choices there are."""

import itertools
import random
from collections.abc import Sequence

import pytest

from workers.auto.knapsack import Choice, choose, smallest_bytes, total_bytes

Units = Sequence[Sequence[Choice]]


def by_brute_force(units: Units, max_bytes: int) -> float:
    """The least cost of all choices that keep the budget."""
    return min(
        sum(choice.cost for choice in chosen)
        for chosen in itertools.product(*units)
        if sum(choice.num_bytes for choice in chosen) <= max_bytes
    )


def cost_of(units: Units, chosen: Sequence[int]) -> float:
    return sum(choices[index].cost for choices, index in zip(units, chosen, strict=True))


def random_units(generator: random.Random, num_units: int, *, is_falling: bool) -> list[list[Choice]]:
    """is_falling: more bytes cost less, as bits do; else anything."""
    units = []
    for _ in range(num_units):
        sizes = sorted(generator.sample(range(1, 60), generator.randint(1, 5)))
        costs = [generator.random() ** 4 for _ in sizes]
        if is_falling:
            costs.sort(reverse=True)
        units.append([Choice(num_bytes=size, cost=cost) for size, cost in zip(sizes, costs, strict=True)])
    return units


@pytest.mark.parametrize("is_falling", [True, False], ids=["falling", "any"])
@pytest.mark.parametrize("seed", range(60))
def test_choice_is_the_best_of_all(seed: int, is_falling: bool) -> None:
    generator = random.Random(seed)
    units = random_units(generator, generator.randint(1, 6), is_falling=is_falling)
    least = smallest_bytes(units)
    most = sum(max(choice.num_bytes for choice in choices) for choices in units)

    for max_bytes in {least, most, most + 5, *(generator.randint(least, most) for _ in range(6))}:
        chosen = choose(units, max_bytes)

        assert total_bytes(units, chosen) <= max_bytes
        assert cost_of(units, chosen) == pytest.approx(by_brute_force(units, max_bytes), rel=2e-6, abs=1e-15)


def test_choice_that_no_price_of_a_byte_reaches_is_found() -> None:
    # On the convex hull are the first and the last choice only; both whole budgets need the middle one.
    unit = [Choice(num_bytes=0, cost=10.0), Choice(num_bytes=5, cost=6.0), Choice(num_bytes=10, cost=0.0)]

    assert choose([unit], 9) == [1]
    assert sorted(choose([unit, unit], 15)) == [1, 2]


def test_budget_below_the_smallest_choices_names_what_they_take() -> None:
    units = [[Choice(num_bytes=3, cost=1.0)], [Choice(num_bytes=4, cost=1.0), Choice(num_bytes=9, cost=0.0)]]

    with pytest.raises(ValueError, match="smallest choices take, 7"):
        choose(units, 6)


def test_choices_that_cost_nothing_take_the_fewest_bytes() -> None:
    unit = [Choice(num_bytes=9, cost=0.0), Choice(num_bytes=2, cost=0.0)]

    assert choose([unit, unit], 100) == [1, 1]


def test_equal_layers_of_a_large_model_are_shared_out_to_the_last_step() -> None:
    """All units alike: as many as fit get the larger choice."""
    unit = [Choice(num_bytes=300, cost=1.0), Choice(num_bytes=400, cost=0.1)]

    chosen = choose([unit] * 320, 320 * 300 + 100 * 77 + 99)

    assert sum(chosen) == 77


def test_eighty_layers_are_chosen_for_as_well_as_the_relaxation_allows() -> None:
    generator = random.Random(5)
    units = []
    for _ in range(320):
        scale, size = generator.random() ** 3, generator.choice([4096, 11008, 14336]) * 512
        units.append([Choice(num_bytes=size * bits, cost=scale * 4.0**-bits) for bits in (2, 3, 4, 8, 16)])
    max_bytes = int(smallest_bytes(units) * 1.9)

    chosen = choose(units, max_bytes)

    assert total_bytes(units, chosen) <= max_bytes
    price = 1.0
    bound = 0.0
    # Any price of a byte bounds the cost from below; the best of many is within a thousandth of it here.
    for _ in range(400):
        price *= 0.9
        least = sum(min(one.cost + price * one.num_bytes for one in choices) for choices in units)
        bound = max(bound, least - price * max_bytes)
    assert bound <= cost_of(units, chosen) <= bound * 1.02
