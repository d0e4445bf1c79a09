"""Rounding to a symmetric grid, against the formula in fp64."""

import pytest
import torch

from workers.formats import grid


def random_weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_codes_are_the_nearest_points_of_the_grid(num_bits: int) -> None:
    weight = random_weight(6, 50)
    scale = grid.channel_scales(weight, num_bits, torch.float32)

    codes = grid.quantize(weight, scale, num_bits)

    limit = 2 ** (num_bits - 1) - 1
    points = torch.arange(-limit, limit + 1, dtype=torch.float64)
    distances = (weight.double()[..., None] - points * scale.double()[..., None]).abs()
    chosen = (weight.double() - codes.double() * scale.double()).abs()
    # fp32 division: a tie may fall to either side, by a relative 2**-23 of the weight
    assert (chosen <= distances.min(dim=-1).values + 2**-22 * weight.abs().double()).all()


def test_scale_is_absmax_over_the_largest_code() -> None:
    weight = random_weight(6, 50)

    scale = grid.channel_scales(weight, 8, torch.float32)

    torch.testing.assert_close(scale, weight.abs().amax(dim=1, keepdim=True) / 127, rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_half_a_step_at_most(dtype: torch.dtype) -> None:
    weight = random_weight(64, 100)
    scale = grid.channel_scales(weight, 8, dtype)

    restored = grid.dequantize(grid.quantize(weight, scale, 8), scale)

    # The scale may have been rounded down by eps / 2, so the largest weight can lie 127 * eps / 2 steps past the end.
    steps = 0.5 + 127 * torch.finfo(dtype).eps / 2
    assert ((weight - restored).abs() <= steps * scale.float()).all()


def test_zero_channel_has_scale_one_and_comes_back_as_zero() -> None:
    weight = torch.stack([torch.zeros(8), random_weight(8)])

    scale = grid.channel_scales(weight, 8, torch.bfloat16)

    assert scale[0].item() == 1
    assert grid.dequantize(grid.quantize(weight, scale, 8), scale)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiny_channel_stays_finite(dtype: torch.dtype) -> None:
    weight = torch.full((1, 4), 1e-42)

    scale = grid.channel_scales(weight, 8, dtype)

    assert scale.item() > 0
    assert grid.dequantize(grid.quantize(weight, scale, 8), scale).isfinite().all()


def test_codes_are_antisymmetric_and_never_minus_128() -> None:
    weight = random_weight(16, 64)
    scale = grid.channel_scales(weight, 8, torch.bfloat16)

    codes = grid.quantize(weight, scale, 8)

    assert torch.equal(grid.quantize(-weight, scale, 8), -codes)
    assert codes.min() >= -127


def test_relative_error_is_the_frobenius_ratio() -> None:
    assert grid.relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(1 / 5)
    assert grid.relative_error(torch.zeros(2), torch.zeros(2)) == 0
