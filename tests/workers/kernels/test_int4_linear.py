"""Each implementation of int4_linear against fp64, and the layout against torch's own packing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.workers.kernels.bounds import BF16, assert_product, random, random_codes
from workers.kernels import cpu_int4, cuda, int4_layout, ops, reference

# rows, outputs, columns, group size
SHAPES = [
    (1, 64, 32, 32),
    (3, 33, 64, 32),
    (8, 172, 256, 128),
    (32, 130, 96, 32),
    (33, 16, 128, 64),
    (40, 65, 512, 256),
]
SHAPE_IDS = ["x".join(map(str, shape)) for shape in SHAPES]


def operands(n: int, k: int, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """packed, scale_and_offset and the weight that they stand for, (N, K) in fp64."""
    codes = random_codes(16, n, k, seed=n + k)
    scale = (random(n, k // group_size, seed=1).abs() * 0.01 + 1e-3).to(torch.bfloat16)
    # an even zero point on a scale of 8 bits: the offset is exact in bf16
    zero = random_codes(4, n, k // group_size, seed=2) * 2 + 4
    block = cpu_int4.block_rows() or int4_layout.BLOCK_ROWS
    packed = int4_layout.pack(codes, block)
    padded = packed.shape[0] * block
    offset = int4_layout.scale_and_offset(scale, zero, padded, torch.bfloat16)
    wide = [part.double().repeat_interleave(group_size, dim=1) for part in (scale, zero)]
    return packed, offset, (codes.double() - wide[1]) * wide[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_op_is_within_the_rounding_of_bf16(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    m, n, k, group_size = shape
    packed, scale_and_offset, weight = operands(n, k, group_size)
    x = random(m, k, dtype=dtype)

    result = ops.int4_linear(x, packed, scale_and_offset, None, n)

    assert result.dtype is dtype
    assert result.shape == (m, n)
    # x and the expanded weight once each; the sum once
    assert_product(result, x, weight, unit_in=2.1 * BF16, unit_out=1.1 * BF16)


@pytest.mark.parametrize("product", [cpu_int4.packed_product, cpu_int4.dequantized_product], ids=["packed", "expanded"])
def test_both_cpu_products_hold_on_every_machine(product: Callable[..., Tensor]) -> None:
    packed, scale_and_offset, weight = operands(130, 256, 64)
    x = random(5, 256)

    result = product(x, packed, scale_and_offset, 130)

    assert_product(result, x, weight, unit_in=2.1 * BF16, unit_out=1.1 * BF16)


def test_definition_is_exact_to_fp32() -> None:
    packed, scale_and_offset, weight = operands(96, 128, 32)
    x = random(4, 128)

    result = reference.int4_linear(x, packed, scale_and_offset, None, 96)

    assert_product(result, x, weight, unit_in=2**-21, unit_out=2**-24)


def test_expansion_of_fp32_activations_is_exact_where_the_op_is_not_in_use() -> None:
    packed, scale_and_offset, weight = operands(130, 256, 64)
    x = random(40, 256)

    result = cpu_int4.dequantized_product(x, packed, scale_and_offset, 130)

    # q * s + (o - 8 s): each part up to 15 steps, off by half a unit of fp32
    assert_product(result, x, weight.abs() * 0 + weight, unit_in=2**-18, unit_out=2**-24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_cuda_formula_rounds_weights_to_the_activation_dtype(dtype: torch.dtype) -> None:
    packed, scale_and_offset, weight = operands(96, 128, 32)
    x = random(4, 128, dtype=dtype)

    result = cuda.int4_linear(x, packed, scale_and_offset.to(dtype), None, 96)

    unit = torch.finfo(dtype).eps / 2
    # (q - 8) * s and the offset may each be 8 steps where their sum is one
    assert_product(result, x, weight, unit_in=20 * unit, unit_out=1.1 * unit)


@pytest.mark.parametrize("block_rows", [32, 64])
@pytest.mark.parametrize("num_rows", [1, 64, 65, 130])
def test_unpack_is_the_inverse_of_pack(num_rows: int, block_rows: int) -> None:
    codes = random_codes(16, num_rows, 6)

    restored = int4_layout.unpack(int4_layout.pack(codes, block_rows))

    assert torch.equal(restored[:num_rows], codes)
    assert not restored[num_rows:].any()


def test_columns_together_is_the_same_tensor_in_another_order_of_memory() -> None:
    codes = random_codes(16, 70, 6)

    packed = int4_layout.pack(codes, 64, has_columns_together=True)

    assert torch.equal(packed, int4_layout.pack(codes, 64))
    assert packed.stride() == (32 * 6, 1, 6)
    assert packed.clone().to("cpu", copy=True).stride() == packed.stride()


def test_layout_is_the_one_that_torch_packs() -> None:
    block_rows = cpu_int4.block_rows()
    codes = random_codes(16, 128, 64)

    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)

    assert block_rows in (32, 64)
    assert torch.equal(int4_layout.pack(codes, block_rows).reshape(-1), packed.reshape(-1))


def test_symmetric_grid_has_no_offset() -> None:
    scale = random(3, 2).abs()

    result = int4_layout.scale_and_offset(scale, torch.full((3, 2), 8, dtype=torch.uint8), 64, torch.bfloat16)

    assert result.shape == (2, 64, 2)
    assert torch.equal(result[:, :3, 0], scale.T.to(torch.bfloat16))
    assert not result[..., 1].any()
    assert not result[:, 3:].any()


def test_foreign_layout_and_scales_take_the_slow_way() -> None:
    packed, scale_and_offset, weight = operands(96, 128, 32)
    codes = int4_layout.unpack(packed)[:96]
    other = int4_layout.pack(codes, 32 if cpu_int4.block_rows() == 64 else 64)
    x = random(2, 128)

    foreign = ops.int4_linear(x, other, scale_and_offset[:, : other.shape[0] * other.shape[2] * 2], None, 96)
    wide = ops.int4_linear(x, packed, scale_and_offset.float(), None, 96)

    for result in (foreign, wide):
        assert_product(result, x, weight, unit_in=2**-18, unit_out=2**-24)
