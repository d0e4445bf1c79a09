"""What each bit width of each linear takes in the files, and the whole allocations that keep a budget."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch

from workers.auto.knapsack import Choice, choose
from workers.auto.sensitivity import Unit, uniform_plan
from workers.checkpoint.headers import CheckpointHeaders
from workers.checkpoint.layouts.layout import Layout
from workers.compress.pieces import compressed_pieces
from workers.compress.plan import CompressionPlan
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.recipes import AutoRecipe, GptqRecipe

# Leaves linears as they are.
WHOLE: Final = 16
# Two 64-bit numbers.
_SHAPE_BYTES: Final = 16


def gptq_recipes(recipe: AutoRecipe) -> dict[int, GptqRecipe]:
    """By bits, fewest first: what linears may get, but for being left as they are."""
    return {
        bits: GptqRecipe(num_bits=bits, group_size=recipe.group_size, symmetric=recipe.symmetric)
        for bits in sorted(set(recipe.candidate_bits))
        if bits != WHOLE
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of weights. modules: module -> bits -> bytes. kept_bytes: of what is no linear of the plan. max_bytes: the
    budget for all. num_weights, shape_bytes: of all modules.
    """

    modules: dict[str, dict[int, int]]
    kept_bytes: int
    max_bytes: int
    num_weights: int
    shape_bytes: int

    def of(self, modules: Iterable[str], num_bits: int) -> int:
        """Bytes of these modules at one bit width."""
        return sum(self.modules[module][num_bits] for module in modules)

    def average_bits(self, num_bytes: int) -> float:
        """Bits per weight, scales included, where all weights in the files take num_bytes."""
        return 8 * (num_bytes - self.kept_bytes - self.shape_bytes) / self.num_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAllocation:
    """bits: of each unit. num_bytes: of all weights in the files. kl_sum: of the units' own divergences."""

    name: str
    bits: list[int]
    num_bytes: int
    kl_sum: float


def read_sizes(headers: CheckpointHeaders, plan: CompressionPlan, layout: Layout, recipe: AutoRecipe) -> Sizes:
    """From the headers alone. Raises WorkerError (invalid_request) for a budget below the smallest choices, or one that
    leaves every linear as it is.
    """
    modules: dict[str, dict[int, int]] = {}
    for name, module in plan.targets.items():
        modules[module] = {WHOLE: headers.tensors[name].num_bytes}
    for num_bits, gptq in gptq_recipes(recipe).items():
        for piece in compressed_pieces(headers, uniform_plan(plan, gptq), layout, torch.device("cpu"), {}):
            if piece.unit in modules:
                modules[piece.unit][num_bits] = sum(tensor.num_bytes for tensor in piece.planned())
    # A matrix's shape, which the layout keeps, is no bit of a weight: 4 bits in groups of 128 are to be 4.125.
    shape_bytes = len(modules) * _SHAPE_BYTES
    kept_bytes = headers.weight_bytes - sum(own[WHOLE] for own in modules.values())
    num_weights = sum(headers.tensors[name].shape[0] * headers.tensors[name].shape[1] for name in plan.targets)
    max_bytes = recipe.max_bytes
    if max_bytes is None:
        assert recipe.bits is not None
        max_bytes = kept_bytes + int(recipe.bits * num_weights / 8) + shape_bytes
    sizes = Sizes(
        modules=modules,
        kept_bytes=kept_bytes,
        max_bytes=max_bytes,
        num_weights=num_weights,
        shape_bytes=shape_bytes,
    )
    _check_budget(sizes, recipe)
    return sizes


def _check_budget(sizes: Sizes, recipe: AutoRecipe) -> None:
    least = sizes.kept_bytes + sum(min(own[bits] for bits in recipe.candidate_bits) for own in sizes.modules.values())
    whole = sizes.kept_bytes + sizes.of(sizes.modules, WHOLE)
    if sizes.max_bytes < least:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"the budget of {sizes.max_bytes:,} bytes ({sizes.average_bits(sizes.max_bytes):.3f} bits per weight) is "
            f"below the smallest variant that candidate_bits {list(recipe.candidate_bits)} make: {least:,} bytes "
            f"({sizes.average_bits(least):.3f} bits)",
        )
    if WHOLE in recipe.candidate_bits and sizes.max_bytes >= whole:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"the budget of {sizes.max_bytes:,} bytes has room for the base as it is, {whole:,} bytes; give less",
        )


def allocations_within(units: list[Unit], sizes: Sizes, recipe: AutoRecipe) -> list[WholeAllocation]:
    """A handful of allocations that keep the budget, no two alike: the least sum of divergences; the same where no unit
    is further than one step below the uniform allocation, and where none is below it; the uniform allocation itself.
    """
    steps: list[int] = sorted(set(recipe.candidate_bits))
    fitting = [bits for bits in steps if bits != WHOLE and _uniform_bytes(units, sizes, bits) <= sizes.max_bytes]
    wanted: list[tuple[str, Callable[[int], bool]]] = [("least sum of KL", lambda _: True)]
    if fitting:
        uniform = fitting[-1]
        below = steps[max(0, steps.index(uniform) - 1)]
        wanted += [
            (f"at least {below} bits", lambda bits: bits >= below),
            (f"at least {uniform} bits", lambda bits: bits >= uniform),
            (f"uniform {uniform} bits", lambda bits: bits == uniform),
        ]
    found: dict[tuple[int, ...], WholeAllocation] = {}
    for name, is_allowed in wanted:
        allowed = [bits for bits in steps if is_allowed(bits)]
        one = _cheapest(name, units, allowed, sizes)
        # Of two that are alike the simpler name is kept.
        found[tuple(one.bits)] = one
    return list(found.values())


def _uniform_bytes(units: list[Unit], sizes: Sizes, num_bits: int) -> int:
    return sizes.kept_bytes + sum(sizes.of(unit.modules, num_bits) for unit in units)


def _cheapest(name: str, units: list[Unit], allowed: list[int], sizes: Sizes) -> WholeAllocation:
    choices = [
        [Choice(num_bytes=sizes.of(unit.modules, bits), cost=unit.kl.get(bits, 0.0)) for bits in allowed]
        for unit in units
    ]
    chosen = choose(choices, sizes.max_bytes - sizes.kept_bytes)
    picked = [own[index] for own, index in zip(choices, chosen, strict=True)]
    return WholeAllocation(
        name=name,
        bits=[allowed[index] for index in chosen],
        num_bytes=sizes.kept_bytes + sum(one.num_bytes for one in picked),
        kl_sum=sum(one.cost for one in picked),
    )
