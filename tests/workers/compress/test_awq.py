"""AWQ and SmoothQuant on layers with planted large activations, and the methods without data."""

from typing import Any

import pytest
import torch
from torch import Tensor

from workers.compress import awq, fp8, llm_int8, rtn, smoothquant
from workers.compress.weight_grid import WeightGrid


def planted(num_large: int = 4) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(5)
    inputs = torch.randn(256, 128, generator=chance)
    inputs[:, :num_large] *= 30
    return torch.randn(48, 128, generator=chance), inputs


def change(weight: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    return float((inputs.double() @ (weight - approximation).double().T).square().mean())


def test_awq_loses_less_than_round_to_nearest_and_clip_less_again() -> None:
    weight, inputs = planted()
    points = WeightGrid(num_bits=3, group_size=32, is_symmetric=False)
    plain = change(weight, points.rounded(weight), inputs)

    found = awq.search_scales([weight], inputs.abs().mean(0), inputs, points, 20)
    scaled = weight * found.scales
    folded = points.rounded(scaled) / found.scales
    limits = awq.search_clip(scaled, inputs / found.scales, points)
    clipped = points.rounded(awq.clip(scaled, limits)) / found.scales

    assert found.alpha > 0
    assert change(weight, folded, inputs) < 0.5 * plain
    assert change(weight, clipped, inputs) < change(weight, folded, inputs)
    torch.testing.assert_close((inputs / found.scales) @ scaled.T, inputs @ weight.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("group_size", [32, -1, 0])
@pytest.mark.parametrize("is_symmetric", [True, False], ids=["sym", "asym"])
def test_search_rounds_as_the_variant_will_be(group_size: int, is_symmetric: bool) -> None:
    weight, _ = planted()
    options: dict[str, Any] = {"num_bits": 4, "group_size": group_size, "is_symmetric": is_symmetric}

    expected = rtn.quantize(weight, **options).dequantize()

    assert torch.equal(WeightGrid(**options).rounded(weight), expected)


def test_losses_of_the_scale_search_are_those_of_the_outputs() -> None:
    weight, inputs = planted()
    points = WeightGrid(num_bits=4, group_size=32, is_symmetric=True)
    mean = inputs.abs().mean(0)

    many = awq.search_scales([weight, weight[:7]], mean, inputs, points, 5)
    few = awq.search_scales([weight, weight[:7]], mean, inputs[:20], points, 5)

    # More tokens than columns go through X^T X, fewer through X itself.
    for found, seen in ((many, inputs), (few, inputs[:20])):
        for step, loss in enumerate(found.losses):
            scales = mean ** (step / 5)
            scales = scales / (scales.max() * scales.min()).sqrt()
            rounded = points.rounded(weight * scales) / scales
            expected = sum(
                change(one, rounded[: len(one)], seen) * len(seen) * len(one) for one in (weight, weight[:7])
            )
            # fp32 sums of 128 products against fp64 ones
            assert abs(loss - expected) < 1e-3 * expected


def test_smoothquant_loses_less_than_naive_w8a8() -> None:
    weight, inputs = planted()

    def w8a8(x: Tensor, w: Tensor) -> Tensor:
        rounded = rtn.quantize(w, num_bits=8, group_size=-1, is_symmetric=True).dequantize()
        return smoothquant.round_tokens(x) @ rounded.T

    scales = smoothquant.smoothing_scales(inputs.abs().amax(0), weight.abs().amax(0), 0.5)

    exact = inputs @ weight.T
    naive = (w8a8(inputs, weight) - exact).square().mean()
    assert (w8a8(inputs / scales, weight * scales) - exact).square().mean() < 0.25 * naive


def test_tokens_are_rounded_to_int8_by_their_own_largest_number() -> None:
    inputs = torch.tensor([[127.0, 3.4, -0.6], [0.0, 0.0, 0.0], [-1.0, 0.5, 0.001]])

    rounded = smoothquant.round_tokens(inputs)

    torch.testing.assert_close(rounded, torch.tensor([[127.0, 3.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 64 / 127, 0.0]]))


def test_smoothing_leaves_silent_columns_alone() -> None:
    scales = smoothquant.smoothing_scales(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5)

    assert scales.tolist() == [1, 1, 2]


def test_fp8_and_llm_int8_keep_their_rows_within_their_steps() -> None:
    weight, _ = planted()
    weight[3] = 0
    absmax = weight.abs().amax(1, keepdim=True)

    # E4M3 has 3 bits of mantissa, so half a step is 1 / 16 of a number; below 2**-6 steps are 2**-9 of the scale.
    error = (fp8.quantize(weight, True).dequantize() - weight).abs()
    assert (error <= weight.abs() / 16 + absmax / 448 * 2**-10 + 1e-6).all()
    error = (llm_int8.quantize(weight, 6.0).dequantize() - weight).abs()
    assert (error <= absmax / 127 / 2 + 1e-6).all()
