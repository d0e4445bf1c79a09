"""Each implementation of int8_linear against fp64, with bounds from the roundings that its docstring admits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from workers.kernels import cpu, cuda, ops, reference

# rounding to bf16 moves a number by a relative 2**-9 at most
BF16 = 2**-9
FP32 = 2**-24


def operands(rows: int, n: int, k: int, dtype: torch.dtype, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 10_007 + n * 101 + k)
    x = torch.randn(rows, k, generator=generator).to(dtype)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, generator=generator)
    scale = (torch.rand(n, 1, generator=generator) * 0.01 + 1e-4).to(scale_dtype)
    return x, weight, scale


def exact(x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The product in fp64, and sum |x| |q| s, what relative errors of the factors are relative to."""
    w = weight.double() * scale.double()
    return x.double() @ w.T, x.double().abs() @ w.abs().T


def check(result: Tensor, x: Tensor, weight: Tensor, scale: Tensor, unit_in: float, unit_out: float) -> None:
    expected, magnitude = exact(x, weight, scale)
    bound = magnitude * (unit_in + 2 * weight.shape[1] * FP32) + expected.abs() * unit_out + 1e-30
    assert ((result.double() - expected).abs() <= bound).all()


SHAPES = [(1, 64, 32), (3, 33, 64), (8, 172, 128), (9, 16, 96), (40, 64, 352), (2, 64, 40), (5, 7, 13), (1, 1, 32)]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=["scale-bf16", "scale-fp32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_op_is_within_the_rounding_of_bf16(
    shape: tuple[int, int, int], dtype: torch.dtype, scale_dtype: torch.dtype
) -> None:
    x, weight, scale = operands(*shape, dtype, scale_dtype)

    result = ops.int8_linear(x, weight, scale, None)

    assert result.dtype is dtype
    # x once; the product once before the scale and once after
    check(result, x, weight, scale, unit_in=BF16, unit_out=2.1 * BF16)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32], ids=["scale-bf16", "scale-fp32"])
@pytest.mark.parametrize("product", [cpu.packed_product, None], ids=["packed", "dequantized"])
def test_both_cpu_products_hold_on_every_machine(
    product: Callable[[Tensor, Tensor, Tensor], Tensor] | None, scale_dtype: torch.dtype
) -> None:
    x, weight, scale = operands(4, 96, 64, torch.float32, scale_dtype)

    result = product(x, weight, scale) if product else cpu.dequantized_product(x, weight, scale, round_to_bf16=False)

    check(result, x, weight, scale, unit_in=BF16, unit_out=2.1 * BF16)


def test_definition_is_exact_to_fp32() -> None:
    x, weight, scale = operands(4, 96, 64, torch.float32, torch.float32)

    check(reference.int8_linear(x, weight, scale, None), x, weight, scale, unit_in=2 * FP32, unit_out=FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_cuda_formula_rounds_weights_to_the_activation_dtype(dtype: torch.dtype) -> None:
    x, weight, scale = operands(4, 96, 64, dtype, torch.bfloat16)

    result = cuda.int8_linear(x, weight, scale, None)

    unit = torch.finfo(dtype).eps / 2
    # the smallest scale, 1e-4, is below fp16's normal numbers of 6e-5 only after the product with nothing
    check(result, x, weight, scale, unit_in=2.1 * unit, unit_out=1.1 * unit)


def test_bias_and_leading_dimensions() -> None:
    x, weight, scale = operands(6, 48, 64, torch.float32, torch.bfloat16)
    bias = torch.linspace(-100, 100, 48)

    result = ops.int8_linear(x.reshape(2, 3, 64), weight, scale, bias)

    torch.testing.assert_close(result.reshape(6, 48) - bias, ops.int8_linear(x, weight, scale, None), atol=1e-4, rtol=0)


def test_strided_activations_and_no_rows() -> None:
    x, weight, scale = operands(4, 48, 64, torch.bfloat16, torch.bfloat16)

    assert torch.equal(
        ops.int8_linear(x[::2], weight, scale, None), ops.int8_linear(x[::2].clone(), weight, scale, None)
    )
    assert ops.int8_linear(x[:0], weight, scale, None).shape == (0, 48)


def test_rows_do_not_touch_each_other() -> None:
    x, weight, scale = operands(6, 48, 64, torch.float32, torch.bfloat16)
    poisoned = x.clone()
    poisoned[2] = torch.nan

    result = ops.int8_linear(poisoned, weight, scale, None)

    keep = [0, 1, 3, 4, 5]
    assert torch.equal(result[keep], ops.int8_linear(x, weight, scale, None)[keep])
    assert result[2].isnan().all()


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_opcheck(has_bias: bool) -> None:
    x, weight, scale = operands(3, 48, 64, torch.float32, torch.bfloat16)
    bias = torch.zeros(48) if has_bias else None

    torch.library.opcheck(torch.ops.slimserve.int8_linear.default, (x, weight, scale, bias))
