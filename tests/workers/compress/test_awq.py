"""AWQ and SmoothQuant on layers with planted large activations, and the methods without data."""

import torch
from torch import Tensor

from workers.compress import awq, fp8, llm_int8, rtn, smoothquant


def planted(num_large: int = 4) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(5)
    inputs = torch.randn(256, 128, generator=chance)
    inputs[:, :num_large] *= 30
    return torch.randn(48, 128, generator=chance), inputs


def change(weight: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    return float((inputs.double() @ (weight - approximation).double().T).square().mean())


def test_awq_loses_less_than_round_to_nearest_and_clip_less_again() -> None:
    weight, inputs = planted()
    options = {"num_bits": 3, "group_size": 32, "is_symmetric": False}
    plain = change(weight, rtn.quantize(weight, **options).dequantize(), inputs)

    found = awq.search_scales([weight], inputs, num_ratios=20, **options)
    scaled = weight * found.scales
    folded = rtn.quantize(scaled, **options).dequantize() / found.scales
    limits = awq.search_clip(scaled, inputs / found.scales, **options)
    clipped = rtn.quantize(awq.clip(scaled, limits), **options).dequantize() / found.scales

    assert found.alpha > 0
    assert change(weight, folded, inputs) < 0.5 * plain
    assert change(weight, clipped, inputs) < change(weight, folded, inputs)
    torch.testing.assert_close((inputs / found.scales) @ scaled.T, inputs @ weight.T, rtol=1e-4, atol=1e-3)


def test_smoothquant_loses_less_than_naive_w8a8() -> None:
    weight, inputs = planted()

    def w8a8(x: Tensor, w: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True) / 127
        rounded = rtn.quantize(w, num_bits=8, group_size=-1, is_symmetric=True).dequantize()
        return (torch.round(x / step) * step) @ rounded.T

    scales = smoothquant.smoothing_scales(inputs.abs().amax(0), weight.abs().amax(0), 0.5)

    exact = inputs @ weight.T
    naive = (w8a8(inputs, weight) - exact).square().mean()
    assert (w8a8(inputs / scales, weight * scales) - exact).square().mean() < 0.25 * naive


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
