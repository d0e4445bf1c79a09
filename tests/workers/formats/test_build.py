"""Every kind of codes becomes a layer that multiplies with the weight that the codes stand for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.workers.formats.stored_weights import CASES, CPU, K, N, grid
from tests.workers.kernels.bounds import assert_product, random, random_codes
from workers.compress import codebook, fp8, rtn
from workers.formats.build import build_linear
from workers.formats.codes import Codes, GridCodes
from workers.formats.linear import QuantizedLinear
from workers.formats.swap import kernels, product_dtype, quantized_linears
from workers.kernels import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("make", "kind", "format"), CASES.values(), ids=CASES.keys())
def test_layer_multiplies_with_what_the_codes_stand_for(
    make: Callable[[], Codes], kind: type[QuantizedLinear], format: str, dtype: torch.dtype
) -> None:
    codes, bias = make(), random(N, seed=1)
    x = random(5, K, seed=2, dtype=dtype)

    layer = build_linear(codes, bias, dtype=dtype, device=CPU)
    result = layer(x)

    assert type(layer) is kind
    assert codes.format == format
    # every method here rounds to bf16 scales, which the layers keep; an offset of int4 is rounded to bf16 once more
    torch.testing.assert_close(layer.dequantize(), codes.dequantize(), rtol=2**-8, atol=2**-8)
    expected = x.float() @ codes.dequantize().T + bias.to(dtype).float()
    # activations of 8 bits or bf16: relative rms errors below a hundredth
    error = (result.float() - expected).square().mean().sqrt()
    assert error <= (0.03 if codes.format == "fp8" else 0.012) * expected.square().mean().sqrt()
    assert result.dtype is dtype
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["int8", "int8-asymmetric", "int4-g32", "int4-channel-asymmetric", "int3-g64"])
def test_unrounded_layer_is_exact_in_fp32(name: str) -> None:
    codes = CASES[name][0]()
    x, bias = random(40, K, seed=2), random(N, seed=1)

    layer = build_linear(codes, bias, dtype=torch.float32, device=CPU, is_unrounded=True)

    # (q - 8) s + (8 - z) s and (q - z) s differ in fp32's last digit
    torch.testing.assert_close(layer.dequantize(), codes.dequantize(), rtol=2**-20, atol=2**-24)
    assert_product(layer(x) - bias, x, codes.dequantize().double(), unit_in=2**-18, unit_out=2**-20)
    assert (layer.kernel, layer.product_dtype) == (ops.EMULATED, torch.float32)


@pytest.mark.parametrize("num_bits", [2, 3])
def test_zero_points_of_narrow_grids_cost_nothing(num_bits: int) -> None:
    codes = grid(num_bits, 32, is_symmetric=False)

    layer = build_linear(codes, None, dtype=torch.bfloat16, device=CPU)

    assert torch.equal(layer.dequantize(), codes.dequantize())


def test_int4_weight_is_what_every_reader_computes_but_for_the_rounding_of_its_offset() -> None:
    codes = grid(4, 32, is_symmetric=False)
    scale, zero = (part.double().repeat_interleave(32, dim=1) for part in (codes.scale, codes.zero))
    # (q - z) s, as the readers of all layouts have it
    stored = (codes.codes.double() - zero) * scale

    layer = build_linear(codes, None, dtype=torch.bfloat16, device=CPU)

    difference = (layer.dequantize().double() - stored).abs()
    # The CPU's op adds s (8 - z), rounded to bf16: of 8 binary digits half a unit in the last place is 2**-8 at most. A
    # scale of 8 digits times a power of two is exact.
    assert (difference <= 2**-8 * (8 - zero).abs() * scale).all()
    is_exact = torch.isin(zero, torch.tensor([0.0, 4, 6, 7, 8, 9, 10, 12], dtype=torch.float64))
    assert is_exact.any()
    assert not difference[is_exact].any()
    assert difference.any()
    # What the errors of a compression are computed with is the stored weight itself.
    assert torch.equal(codes.dequantize().double(), stored)


def test_int8_scale_is_kept_exactly_where_bf16_cannot_hold_it() -> None:
    codes = replace(grid(8, -1), scale=torch.full((N, 1), 1 / 3, dtype=torch.float32))

    layer = build_linear(codes, None, dtype=torch.bfloat16, device=CPU)

    assert torch.equal(layer.dequantize(), codes.dequantize())


def test_model_tells_its_kernels_and_its_shortest_dtype() -> None:
    layer = build_linear(grid(8, -1), None, dtype=torch.float32, device=CPU)
    model = nn.Sequential(nn.Linear(4, 8), layer)

    assert quantized_linears(model) == {"1": layer}
    assert kernels(model) == layer.kernel
    assert kernels(nn.Sequential(nn.Linear(4, 8))) == ""
    assert product_dtype(model, torch.float32) is layer.product_dtype
    assert product_dtype(model, torch.bfloat16) is torch.bfloat16


def test_odd_shapes_fit_some_layer() -> None:
    weight: Tensor = random(7, 13)
    for codes in (
        rtn.quantize(weight, num_bits=4, group_size=-1, is_symmetric=False),
        codebook.quantize(weight, "nf4", 64, False),
        fp8.quantize(weight, True),
        GridCodes(num_bits=8, codes=random_codes(256, 7, 13), scale=random(7, 1).abs(), zero=random_codes(256, 7, 1)),
    ):
        layer = build_linear(codes, None, dtype=torch.float32, device=CPU)

        torch.testing.assert_close(layer.dequantize(), codes.dequantize())
        assert layer(random(3, 13)).shape == (3, 7)
