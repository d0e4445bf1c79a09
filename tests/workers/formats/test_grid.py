"""Rounding to uniform grids, against the formula in fp64."""

import pytest
import torch
from torch import Tensor

from workers.formats import grid


def random_weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def rounded(weight: Tensor, num_bits: int, is_symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero of a weight whose rows are groups."""
    scale, zero = grid.affine_grid(weight, num_bits, is_symmetric, dtype)
    return grid.affine_codes(weight, scale[:, None], zero[:, None], num_bits), scale, zero


def restored(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return (codes.double() - zero.double()[:, None]) * scale.double()[:, None]


@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_codes_are_the_nearest_points_of_the_grid(num_bits: int, is_symmetric: bool) -> None:
    weight = random_weight(6, 50)

    codes, scale, zero = rounded(weight, num_bits, is_symmetric, torch.float32)

    first = 1 if num_bits == 8 and is_symmetric else 0
    points = torch.arange(first, 2**num_bits, dtype=torch.float64)
    values = (points - zero.double()[:, None]) * scale.double()[:, None]
    distances = (weight.double()[..., None] - values[:, None]).abs()
    chosen = (weight.double() - restored(codes, scale, zero)).abs()
    # fp32 division: a tie may fall to either side, by a relative 2**-22 of the range
    assert (chosen <= distances.min(dim=-1).values + 2**-22 * weight.abs().amax().double()).all()


def test_scales_are_those_of_the_formulas() -> None:
    weight = random_weight(6, 50)

    symmetric, middle = grid.affine_grid(weight, 8, True, torch.float32)
    asymmetric, zero = grid.affine_grid(weight, 4, False, torch.float32)

    torch.testing.assert_close(symmetric, weight.abs().amax(dim=1) / 127, rtol=2**-22, atol=0)
    torch.testing.assert_close(asymmetric, (weight.amax(dim=1) - weight.amin(dim=1)) / 15, rtol=2**-22, atol=0)
    assert (middle == 128).all()
    assert torch.equal(zero, torch.round(-weight.amin(dim=1) / asymmetric).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_half_a_step_at_most(dtype: torch.dtype) -> None:
    weight = random_weight(64, 100)

    codes, scale, zero = rounded(weight, 8, True, dtype)

    # The scale may have been rounded down by eps / 2, so the largest weight can lie 127 * eps / 2 steps past the end;
    # in fp16 it has the digits of bf16.
    eps = torch.finfo(torch.bfloat16 if dtype is torch.float16 else dtype).eps
    steps = 0.5 + 127 * eps / 2
    assert ((weight - restored(codes, scale, zero)).abs() <= steps * scale.double()[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_and_tiny_rows_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.stack([torch.zeros(8), torch.full((8,), 1e-42), random_weight(8)])

    for is_symmetric in (True, False):
        codes, scale, zero = rounded(weight, 8, is_symmetric, dtype)

        assert scale[0] == 1
        assert (scale > 0).all()
        assert restored(codes, scale, zero).isfinite().all()
        assert restored(codes, scale, zero)[0].abs().max() == 0


def test_fp16_scales_are_exact_in_bf16() -> None:
    scale, _ = grid.affine_grid(random_weight(500, 16) * torch.logspace(-6, 4, 500)[:, None], 4, True, torch.float16)

    assert scale.dtype is torch.float16
    assert torch.equal(scale.to(torch.bfloat16).to(torch.float32), scale.to(torch.float32))
    assert scale.isfinite().all()


def test_symmetric_8_bit_codes_mirror_each_other() -> None:
    weight = random_weight(16, 64)

    codes, _, _ = rounded(weight, 8, True, torch.bfloat16)
    mirrored, _, _ = rounded(-weight, 8, True, torch.bfloat16)

    assert torch.equal(256 - mirrored.int(), codes.int())
    assert codes.min() >= 1


def test_relative_error_is_the_frobenius_ratio() -> None:
    assert grid.relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 5)
    assert grid.relative_error(torch.zeros(2), torch.zeros(2)) == 0
