"""Every kind of codes becomes a layer that multiplies with the weight that the codes stand for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.workers.kernels.bounds import random, random_codes
from workers.compress import codebook, fp8, llm_int8, rtn
from workers.formats.build import build_linear
from workers.formats.codebook import CodebookLinear
from workers.formats.codes import Codes, GridCodes
from workers.formats.fp8 import Float8Linear
from workers.formats.grid_linear import GridLinear
from workers.formats.int4 import Int4Linear
from workers.formats.int8 import Int8Linear
from workers.formats.linear import QuantizedLinear
from workers.formats.llm_int8 import LlmInt8Linear
from workers.formats.swap import kernels, product_dtype, quantized_linears
from workers.formats.w8a8 import W8A8Linear

CPU = torch.device("cpu")
N, K = 48, 128
WEIGHT = random(N, K)


def grid(num_bits: int, group_size: int, is_symmetric: bool = True) -> GridCodes:
    return rtn.quantize(
        WEIGHT, num_bits=num_bits, group_size=group_size, is_symmetric=is_symmetric, scale_dtype=torch.bfloat16
    )


def mixed(num_bits: int) -> GridCodes:
    """As act-order leaves columns: groups of 32, and any column in any of them."""
    groups = torch.arange(K, dtype=torch.int32) // 32
    order = torch.randperm(K, generator=torch.Generator().manual_seed(3))
    return replace(grid(num_bits, 32, is_symmetric=False), group_index=groups[order])


CASES: dict[str, tuple[Callable[[], Codes], type[QuantizedLinear], str]] = {
    "int8": (lambda: grid(8, -1), Int8Linear, "int8"),
    "int8-groups": (lambda: grid(8, 32), GridLinear, "int8"),
    "int8-asymmetric": (lambda: grid(8, -1, is_symmetric=False), GridLinear, "int8"),
    "int4-g32": (lambda: grid(4, 32), Int4Linear, "int4"),
    "int4-channel-asymmetric": (lambda: grid(4, -1, is_symmetric=False), Int4Linear, "int4"),
    "int3-g64": (lambda: grid(3, 64), Int4Linear, "int3"),
    "int2-tensor": (lambda: grid(2, 0), Int4Linear, "int2"),
    "int4-g16": (lambda: grid(4, 16), GridLinear, "int4"),
    "int4-act-order": (lambda: mixed(4), Int4Linear, "int4"),
    "int8-act-order": (lambda: mixed(8), GridLinear, "int8"),
    "w8a8": (lambda: replace(grid(8, -1), activation_bits=8), W8A8Linear, "w8a8"),
    "nf4": (lambda: codebook.quantize(WEIGHT, "nf4", 64, True), CodebookLinear, "nf4"),
    "fp4": (lambda: codebook.quantize(WEIGHT, "fp4", 64, False), CodebookLinear, "fp4"),
    "fp8": (lambda: fp8.quantize(WEIGHT, True), Float8Linear, "fp8"),
    "fp8-tiles": (lambda: fp8.quantize(WEIGHT, False, 32), Float8Linear, "fp8"),
    "llm-int8": (lambda: llm_int8.quantize(WEIGHT, 6.0), LlmInt8Linear, "llm_int8"),
}


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
