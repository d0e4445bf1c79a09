"""`int4_linear` on the CPU.

torch's `_weight_int4pack_mm_for_cpu` reads 4-bit codes directly and needs bf16 activations, scales and offsets (with
fp32 ones it was 43 times slower). Where it is in use, it is for any number of rows; `cpu` says why. Measured at
4096 x 4096 and 4864 x 896 on two Zen 5 cores, expanding the weight tile by tile would take 28 times as long at 1 row,
as long at 128, and half as long at 512.

Precision: as for int8, x is rounded to bf16, and the product too. The op also rounds each expanded weight to bf16, a
relative 2**-8 at most, beside which a 4-bit grid (steps of a seventh of the group's maximum) is off by about 10 %.
"""

import functools

import torch
from torch import Tensor

from workers.kernels import int4_layout
from workers.kernels.batch_invariance import CHECK_ROWS, is_batch_invariant
from workers.kernels.tiles import finish, rows_per_tile, tiled_product
from workers.kernels.timing import is_worth_it

GROUP_SIZES = (32, 64, 128, 256)
SCALE_DTYPE = torch.bfloat16
# The check: 2 MiB of codes, rows that fill whole blocks, four groups per row.
_CHECK_SHAPE = (4096, 1024)
_CHECK_GROUPS = 4


def int4_linear(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`reference.int4_linear` for CPU tensors, within the rounding that the module's docstring describes."""
    rows = x.reshape(-1, x.shape[-1])
    has_op = packed_op_wins() and scale_and_offset.dtype is SCALE_DTYPE and packed.shape[2] * 2 == block_rows()
    multiply = packed_product if has_op and rows.shape[0] else dequantized_product
    return finish(multiply(rows, packed, scale_and_offset, out_features), x, bias)


def packed_product(rows: Tensor, packed: Tensor, scale_and_offset: Tensor, out_features: int) -> Tensor:
    """By torch's int4 op. rows: (M, K), M > 0. Returns (M, out_features), bf16."""
    num_blocks, num_columns, half = packed.shape
    group_size = num_columns // scale_and_offset.shape[0]
    codes = packed.view(num_blocks * half * 2, num_columns // 2)
    x = rows.to(torch.bfloat16).contiguous()
    product = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, group_size, scale_and_offset)
    result: Tensor = product[:, :out_features]
    return result


def dequantized_product(rows: Tensor, packed: Tensor, scale_and_offset: Tensor, out_features: int) -> Tensor:
    """By expanding tiles of whole blocks. rows: (M, K). Returns (M, out_features), see `tiled_product`."""
    block = packed.shape[2] * 2
    num_columns = packed.shape[1]
    num_groups = scale_and_offset.shape[0]
    scale, offset = scale_and_offset.unsqueeze(1).unbind(-1)

    def expand(start: int, end: int) -> Tensor:
        """(end - start, K), fp32, stored column by column as the blocks are."""
        tile = packed[start // block : -(-end // block)].transpose(0, 1)
        last = start + tile.shape[1] * block
        codes = torch.cat((tile & 15, tile >> 4), dim=-1).to(torch.float32)
        grouped = codes.reshape(num_groups, num_columns // num_groups, -1)
        # (q - 8) * s + o = q * s + (o - 8 * s); fp32 keeps the second form's cancellation far below bf16's rounding
        wide = scale[:, :, start:last].to(torch.float32)
        grouped.mul_(wide).add_(offset[:, :, start:last].to(torch.float32) - int4_layout.CODE_SHIFT * wide)
        return grouped.reshape(num_columns, -1).T[: end - start]

    return tiled_product(rows, out_features, rows_per_tile(num_columns, block), expand)


@functools.cache
def block_rows() -> int:
    """Rows per block in the layout that this machine's op reads: what its own packing makes of known codes."""
    codes = torch.arange(64 * 32, dtype=torch.int32).mul_(7).remainder_(16).reshape(64, 32)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).reshape(-1)
    for candidate in (64, 32):
        if torch.equal(int4_layout.pack(codes.to(torch.uint8), candidate).reshape(-1), expected):
            return candidate
    return 0


@functools.cache
def packed_op_wins() -> bool:
    """Whether torch's int4 op is worth using on this machine, tried once, on first use (about 50 ms).

    It must read our layout, agree with expanding the weight, give a row the same alone and among others, and not be
    slower for one row; see `cpu.packed_op_wins`.
    """
    if not block_rows():
        return False
    num_rows, num_columns = _CHECK_SHAPE
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(
        0, 256, (num_rows // block_rows(), num_columns, block_rows() // 2), dtype=torch.uint8, generator=generator
    )
    scale_and_offset = torch.rand(_CHECK_GROUPS, num_rows, 2, generator=generator).to(torch.bfloat16)
    rows = torch.randn(CHECK_ROWS, num_columns, generator=generator).to(torch.bfloat16)

    def with_op(x: Tensor) -> Tensor:
        return packed_product(x, packed, scale_and_offset, num_rows)

    def dequantized(x: Tensor) -> Tensor:
        return dequantized_product(x, packed, scale_and_offset, num_rows).to(torch.bfloat16)

    # Sums of 1,024 terms near 2.5: about 80 in size, several hundred at most, where a bf16 step is 2.
    if not torch.allclose(with_op(rows[:1]), dequantized(rows[:1]), rtol=2**-6, atol=2.0):
        return False
    return is_batch_invariant(with_op, rows) and is_worth_it(lambda: with_op(rows[:1]), lambda: dequantized(rows[:1]))
