"""w8a8_linear and llm_int8_linear: integers exactly, and per token what the papers' formulas give in fp64."""

import pytest
import torch
from torch import Tensor

from tests.workers.kernels.bounds import random
from workers.kernels import cpu_integer, cuda, ops, reference, rounding

SIDES = pytest.mark.parametrize("side", [ops, reference, cuda], ids=["cpu", "definition", "cuda"])
SHAPES = [(1, 64, 64), (3, 33, 40), (17, 8, 16), (2, 5, 7), (4, 6, 1), (2, 3, 2100)]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]


def int8(n: int, k: int) -> Tensor:
    return torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n * k))


def token_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The formula of LLM.int8(), written once more: integers as fp64, and the step."""
    step = (x.float().abs().amax(dim=1, keepdim=True) / 127).double()
    return torch.round(x.float() / step.float()).double(), step


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_integer_products_are_exact(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    codes, weight = int8(m, k), int8(n, k)
    expected = codes.long() @ weight.long().T

    assert torch.equal(cpu_integer.integer_product(codes, weight).long(), expected)
    assert torch.equal(cpu_integer.chunked_product(codes, weight).long(), expected)


def test_longest_exact_run_does_not_round() -> None:
    # every product at its largest, and one odd number that a rounded sum would lose
    codes = torch.full((1, 5000), 127, dtype=torch.int8)
    weight = torch.full((2, 5000), -128, dtype=torch.int8)
    weight[1, 17] = 1

    result = cpu_integer.chunked_product(codes, weight)

    assert result.tolist() == [[-127 * 128 * 5000, -127 * 128 * 4999 + 127]]


@SIDES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_w8a8_is_the_formula(side: object, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    x, weight, scale = random(m, k, dtype=dtype), int8(n, k), random(n, 1, seed=5).abs()

    result = side.w8a8_linear(x, weight, scale, None)

    codes, step = token_codes(x)
    expected = (codes @ weight.double().T) * step * scale.double().T
    # the integer sum, two scales and two products in fp32, then x's dtype
    rtol = 5 * 2**-24 + torch.finfo(dtype).eps / 2
    torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=1e-30)


@SIDES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_llm_int8_keeps_the_outliers_of_each_token(side: object, dtype: torch.dtype) -> None:
    x, weight, absmax = random(5, 64, dtype=dtype), int8(48, 64), random(48, seed=6).abs() + 0.1
    x[0, 3], x[0, 40], x[3, 3] = 50.0, -8.0, 6.0

    result = side.llm_int8_linear(x, weight, absmax, None, 6.0)

    is_outlier = x.abs() >= 6
    codes, step = token_codes(x.masked_fill(is_outlier, 0))
    steps = absmax.double() / 127
    inner = (codes @ weight.double().T) * step
    outer = x.double().masked_fill(~is_outlier, 0) @ weight.double().T
    expected = (inner + outer) * steps
    # bf16: weights and the two partial products may be rounded to it (CUDA), each up to a few hundred here
    tolerance = 2**-20 if dtype is torch.float32 else 3 * 2**-9
    atol = tolerance * float(
        ((codes.abs() @ weight.double().abs().T) * step * steps).max() + (outer * steps).abs().max()
    )
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=atol)


def test_llm_int8_without_threshold_is_w8a8() -> None:
    x, weight, absmax = random(5, 64) * 100, int8(48, 64), random(48, seed=6).abs() + 0.1

    result = ops.llm_int8_linear(x, weight, absmax, None, 0.0)

    torch.testing.assert_close(result, ops.w8a8_linear(x, weight, (absmax / 127).unsqueeze(1), None))


def test_llm_int8_outliers_of_one_token_leave_the_others_alone() -> None:
    x, weight, absmax = random(6, 64), int8(48, 64), random(48, seed=6).abs() + 0.1
    loud = x.clone()
    loud[2, ::2] = 1e4

    quiet, mixed = (ops.llm_int8_linear(rows, weight, absmax, None, 6.0) for rows in (x, loud))

    keep = [0, 1, 3, 4, 5]
    torch.testing.assert_close(mixed[keep], quiet[keep], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("rounds", [rounding.round_to_int8, rounding.round_to_float8], ids=["int8", "float8"])
def test_rounding_survives_zeros_and_the_smallest_numbers(rounds: object) -> None:
    rows = torch.stack([torch.zeros(8), torch.full((8,), 1e-45), random(8), torch.full((8,), 3e38)])

    values, scale = rounds(rows)

    restored = values.float() * scale
    assert restored.isfinite().all()
    assert not restored[0].any()
    # half a step of 1 / 127, or half a unit of E4M3's three bits
    assert ((restored - rows).abs()[2:] <= rows.abs().amax(1, keepdim=True)[2:] * 2**-4).all()
    assert (values.float().abs().amax(1)[2:] == (127 if values.dtype is torch.int8 else 448)).all()
