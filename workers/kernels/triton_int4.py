"""`int4_linear` on CUDA by a Triton kernel that reads the 4-bit codes directly (W4A16), for few rows.

Every code becomes q - 8 in x's dtype, which holds it exactly; the products of one group are summed in fp32 by the
tensor cores, and only then multiplied by the group's scale. So no weight is ever rounded, unlike in the plain path.

At full memory bandwidth an H200 has about 4 lane-instructions for each 4-bit weight, which decides the rest:
- A byte holds two rows' codes for one column. Its halves go to two products with the same tile of x and need no
  shuffling into one tile.
- Codes should lie column after column in memory (`int4_layout.pack` with has_columns_together): the layout of the
  tensor cores gives a thread neighbouring columns, which then come 8 at a time, and one by one otherwise. Compiled for
  sm_90 a weight takes 4.4 instructions so, and 5.5 in the CPU's order. Both are right: the kernel goes by the strides.
- Four bytes are decoded at once in a register by a few lines of PTX, 1.5 instructions per weight where the same in
  Triton's own language takes 3.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels import int4_layout, triton_split

_GROUP_SIZES = (32, 64, 128, 256)
_MAX_STEP = 128
# Bytes side by side in a tile; each stands for two outputs. Wide tiles read x less often.
_BLOCK_BYTES = 64
_NUM_WARPS = 4
_NUM_STAGES = 4

# $0, $1: q - 8 of four bytes' low halves, as pairs; $2, $3: of the high halves. $4: the bytes.
# In bf16 the bits 0x4300 | q are 128 + q, in fp16 0x6400 | q are 1024 + q; taking 136 or 1032 off is exact. bf16 has an
# addition from sm_90 on only, so its pairs are multiplied by one and added to. lop3's 0xEA is (a & b) | c.
_UNPACK = """{{
    .reg .b32 low, high, low4, high4, bias, one;
    mov.b32 bias, {bias};
    mov.b32 one, {one};
    prmt.b32 low, $4, 0, 0x4140;
    prmt.b32 high, $4, 0, 0x4342;
    shr.b32 low4, low, 4;
    shr.b32 high4, high, 4;
    lop3.b32 low, low, 0x000F000F, {magic}, 0xEA;
    lop3.b32 high, high, 0x000F000F, {magic}, 0xEA;
    lop3.b32 low4, low4, 0x000F000F, {magic}, 0xEA;
    lop3.b32 high4, high4, 0x000F000F, {magic}, 0xEA;
    fma.rn.{type} $0, low, one, bias;
    fma.rn.{type} $1, high, one, bias;
    fma.rn.{type} $2, low4, one, bias;
    fma.rn.{type} $3, high4, one, bias;
}}"""
UNPACK_BF16 = tl.constexpr(_UNPACK.format(bias="0xC308C308", one="0x3F803F80", magic="0x43004300", type="bf16x2"))
UNPACK_FP16 = tl.constexpr(_UNPACK.format(bias="0xE408E408", one="0x3C003C00", magic="0x64006400", type="f16x2"))


def sample(device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
    """Arguments of `product` for the check at start-up: one row, 8 MiB of codes in groups of 128."""
    num_outputs, num_columns = 4096, 4096
    shape = (num_outputs // int4_layout.BLOCK_ROWS, int4_layout.BLOCK_ROWS // 2, num_columns)
    packed = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator).transpose(1, 2)
    groups = torch.rand(num_columns // 128, num_outputs, 2, device=device, generator=generator).to(torch.bfloat16)
    x = torch.randn(1, num_columns, device=device, generator=generator).to(torch.bfloat16)
    return x, packed, groups, None, num_outputs


def takes(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> bool:
    """True for few bf16 or fp16 rows and groups of 32, 64, 128 or 256 columns."""
    num_groups, num_columns = scale_and_offset.shape[0], x.shape[-1]
    return triton_split.takes_rows(x) and num_columns % num_groups == 0 and num_columns // num_groups in _GROUP_SIZES


def product(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`reference.int4_linear` for arguments that `takes` accepts; only the sum is rounded to x's dtype."""
    num_columns = x.shape[-1]
    rows = x.reshape(-1, num_columns).contiguous()
    num_blocks, _, half = packed.shape
    scales = scale_and_offset.contiguous()
    group_size = num_columns // scales.shape[0]
    step = min(group_size, _MAX_STEP)
    plan = triton_split.plan(rows.shape[0], triton.cdiv(num_blocks * half, _BLOCK_BYTES), num_columns // step, x.device)
    partial = triton_split.partial_sums(plan, rows, out_features)
    _int4_sums[plan.grid](
        rows, packed, scales, partial, rows.shape[0], out_features, num_columns, scales.shape[1],
        plan.steps_per_split, *packed.stride(),
        GROUP_SIZE=group_size, HALF=half, BLOCK_ROWS=plan.block_rows, BLOCK_BYTES=_BLOCK_BYTES, STEP=step,
        HAS_PTX=not triton.knobs.runtime.interpret, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES,
    )  # fmt: skip
    return triton_split.finish(partial, x, bias)


@triton.jit
def _centered(codes, like, HAS_PTX: tl.constexpr):
    """codes: uint8, two a byte. Returns q - 8 of the low halves and of the high ones, in the dtype of `like`."""
    if HAS_PTX:
        if like.dtype == tl.bfloat16:
            low, high = tl.inline_asm_elementwise(
                UNPACK_BF16, "=r,=r,=r,=r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
        else:
            low, high = tl.inline_asm_elementwise(
                UNPACK_FP16, "=r,=r,=r,=r,r", [codes], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
            )
    else:
        low = ((codes & 15).to(tl.float32) - 8).to(like.dtype)
        high = ((codes >> 4).to(tl.float32) - 8).to(like.dtype)
    return low, high


@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def _int4_sums(  # noqa: PLR0913  # a kernel has no other way to get its arguments
    x_ptr,
    packed_ptr,
    scale_ptr,
    partial_ptr,
    num_rows,
    num_outputs,
    num_columns,
    num_padded,
    steps_per_split,
    block_stride,
    column_stride,
    byte_stride,
    GROUP_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    STEP: tl.constexpr,
    HAS_PTX: tl.constexpr,
):
    """One split's part of (BLOCK_ROWS, 2 * BLOCK_BYTES) outputs: of the bytes' low halves and of their high ones."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    byte = tl.program_id(1) * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    split = tl.program_id(2)
    # byte d of block b: rows b * 2 HALF + d and, HALF further, its high half's
    block = byte // HALF
    output = block * (2 * HALF) + byte % HALF
    is_inside = output < num_padded
    column = tl.arange(0, STEP)
    x_at = x_ptr + row * num_columns + column[None, :]
    # 64 bits: a vocabulary's matrix can have more than 2**31 bytes
    code_at = packed_ptr + (block.to(tl.int64) * block_stride + byte % HALF * byte_stride)[None, :]
    code_at += column[:, None] * column_stride
    low = tl.zeros((BLOCK_ROWS, BLOCK_BYTES), tl.float32)
    high = tl.zeros((BLOCK_ROWS, BLOCK_BYTES), tl.float32)

    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, num_columns // STEP)):
        x = tl.load(x_at + step * STEP, mask=row < num_rows, other=0.0)
        codes = tl.load(code_at + step * STEP * column_stride, mask=is_inside[None, :], other=0)
        scale_at = scale_ptr + (step * STEP // GROUP_SIZE * num_padded + output) * 2
        low_scale = tl.load(scale_at, mask=is_inside, other=0.0).to(tl.float32)[None, :]
        low_offset = tl.load(scale_at + 1, mask=is_inside, other=0.0).to(tl.float32)[None, :]
        high_scale = tl.load(scale_at + 2 * HALF, mask=is_inside, other=0.0).to(tl.float32)[None, :]
        high_offset = tl.load(scale_at + 2 * HALF + 1, mask=is_inside, other=0.0).to(tl.float32)[None, :]
        low_codes, high_codes = _centered(codes, x, HAS_PTX)
        x_sum = tl.sum(x.to(tl.float32), axis=1)[:, None]
        low += tl.dot(x, low_codes) * low_scale + x_sum * low_offset
        high += tl.dot(x, high_codes) * high_scale + x_sum * high_offset

    out_at = partial_ptr + (split.to(tl.int64) * num_rows + row) * num_outputs + output[None, :]
    tl.store(out_at, low, mask=(row < num_rows) & (output[None, :] < num_outputs))
    tl.store(out_at + HALF, high, mask=(row < num_rows) & (output[None, :] + HALF < num_outputs))
