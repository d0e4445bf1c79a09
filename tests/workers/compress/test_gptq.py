"""GPTQ against the paper's equations, column by column in fp64 with the inverse Hessian updated explicitly."""

import pytest
import torch
from torch import Tensor

from workers.compress import gptq, rtn
from workers.compress.weight_grid import WeightGrid
from workers.protocol.errors import WorkerError

GROUPS_OF_64 = WeightGrid(num_bits=4, group_size=64, is_symmetric=True)


def layer(num_rows: int = 12, num_columns: int = 192, num_tokens: int = 600) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(3)
    mixing = torch.randn(num_columns, num_columns, generator=chance) / num_columns**0.5
    inputs = torch.randn(num_tokens, num_columns, generator=chance) @ (mixing + torch.eye(num_columns))
    return torch.randn(num_rows, num_columns, generator=chance), inputs


def hessian_of(inputs: Tensor) -> Tensor:
    memory = gptq.HessianAccumulator(inputs.shape[1])
    for part in inputs.split(100):
        memory.add(part)
    return memory.mean


def slow(weight: Tensor, inputs: Tensor, num_bits: int, width: int, is_symmetric: bool, act_order: bool) -> Tensor:
    """The weights that OBQ's updates in a fixed order give. One grid formula, written out again."""
    exact = weight.double().clone()
    hessian = 2 * inputs.double().T @ inputs.double() / len(inputs)
    diagonal = hessian.diagonal()
    order = torch.argsort(diagonal, descending=True).tolist() if act_order else list(range(exact.shape[1]))
    inverse = torch.linalg.inv(hessian + 0.01 * diagonal.mean() * torch.eye(len(hessian)))
    result, grids = torch.empty_like(exact), {}

    def grid_of(columns: Tensor) -> tuple[Tensor, Tensor]:
        if is_symmetric:
            scale = columns.abs().amax(1) / (2 ** (num_bits - 1) - 1)
            return scale.bfloat16().double(), torch.full_like(scale, 2 ** (num_bits - 1))
        low, high = columns.amin(1).clamp(max=0), columns.amax(1).clamp(min=0)
        scale = ((high - low) / (2**num_bits - 1)).bfloat16().double()
        return scale, torch.round(-low / scale)

    if act_order:
        grids = {g: grid_of(exact[:, g * width : (g + 1) * width]) for g in range(exact.shape[1] // width)}
    left = list(order)
    for column in order:
        g = column // width
        if g not in grids:
            grids[g] = grid_of(exact[:, g * width : (g + 1) * width])
        scale, zero = grids[g]
        codes = (torch.round(exact[:, column] / scale) + zero).clamp(0, 2**num_bits - 1)
        result[:, column] = (codes - zero) * scale
        left.remove(column)
        pivot = inverse[column, column]
        step = (exact[:, column] - result[:, column]) / pivot
        exact[:, left] -= step[:, None] * inverse[column, left]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / pivot
    return result


@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("is_symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize(("num_bits", "group_size"), [(2, 32), (3, 48), (4, 96), (8, -1)])
def test_equals_the_papers_equations(num_bits: int, group_size: int, is_symmetric: bool, act_order: bool) -> None:
    weight, inputs = layer()

    result = gptq.quantize(
        weight,
        hessian_of(inputs),
        WeightGrid(num_bits=num_bits, group_size=group_size, is_symmetric=is_symmetric),
        act_order=act_order,
        damp_percent=0.01,
    )

    width = group_size if group_size > 0 else weight.shape[1]
    expected = slow(weight, inputs, num_bits, width, is_symmetric, act_order)
    # A tie that fp32 breaks the other way changes its own code and, a little, what follows in its row.
    equal = torch.isclose(result.codes.dequantize().double(), expected, rtol=1e-5, atol=1e-6)
    assert equal.double().mean() > 0.99
    hessian = hessian_of(inputs)
    assert result.error_after == pytest.approx(gptq.output_error(weight - expected.float(), hessian), rel=0.01)
    assert result.error_after < result.error_before


def test_accumulated_hessian_is_the_mean_of_outer_products() -> None:
    _, inputs = layer()

    expected = 2 * inputs.double().T @ inputs.double() / len(inputs)
    # A mean of 600 products of numbers near 1, summed in fp32: 600 roundings of 2**-24 at most.
    torch.testing.assert_close(hessian_of(inputs).double(), expected, rtol=1e-4, atol=600 * 2**-24)


def test_error_before_is_that_of_round_to_nearest() -> None:
    weight, inputs = layer()
    hessian = hessian_of(inputs)

    result = gptq.quantize(weight, hessian, GROUPS_OF_64, act_order=True, damp_percent=0.01)

    plain = rtn.quantize(weight, num_bits=4, group_size=64, is_symmetric=True).dequantize()
    outputs = (inputs @ (weight - plain).T).square().sum() / len(inputs)
    assert result.error_before == pytest.approx(2 * float(outputs), rel=1e-4)


def test_dead_columns_and_too_few_tokens_still_give_a_result() -> None:
    weight, inputs = layer(num_tokens=20)
    inputs[:, 5] = 0

    result = gptq.quantize(weight, hessian_of(inputs), GROUPS_OF_64, act_order=True, damp_percent=1e-9)

    assert result.damp_percent > 1e-9
    assert result.codes.dequantize()[:, 5].abs().max() == 0
    assert result.error_after < result.error_before


@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
def test_searched_grids_lose_less_at_few_bits(act_order: bool) -> None:
    weight, inputs = layer()
    plain, searched = (
        gptq.quantize(
            weight,
            hessian_of(inputs),
            WeightGrid(num_bits=3, group_size=64, is_symmetric=True, is_searched=is_searched),
            act_order=act_order,
            damp_percent=0.01,
        )
        for is_searched in (False, True)
    )

    assert searched.error_before == plain.error_before
    assert searched.error_after < 0.9 * plain.error_after


def test_groups_that_do_not_divide_are_refused() -> None:
    weight, inputs = layer()
    points = WeightGrid(num_bits=4, group_size=128, is_symmetric=True)

    with pytest.raises(WorkerError, match="groups of 128 do not divide 192"):
        gptq.quantize(weight, hessian_of(inputs), points, act_order=True, damp_percent=0.01)
