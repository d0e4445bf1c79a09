"""`codebook_linear` (NF4, FP4) on CUDA by a Triton kernel that reads the 4-bit codes directly, for few rows.

Two codes of a byte belong to neighbouring columns, so a tile of x is split into its even and its odd columns, and each
half of the bytes has a product of its own. Sums over one block of weights are multiplied by its absmax in fp32; a level
is rounded once to x's dtype.

A level is looked up without touching memory: a byte permute (PTX prmt) picks four bytes out of eight by four selectors
of three bits. The sixteen levels' high bytes fill two pairs of registers, their low bytes two more, and the selectors
are the codes as they are stored: 2.6 instructions per weight, where a load per weight would exceed what the load units
take at full memory bandwidth.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels import triton_split

_MAX_STEP = 128
_BLOCK_OUTPUTS = 64
_NUM_WARPS = 4
_NUM_STAGES = 4

# $0, $1: the levels of four bytes' low halves, as pairs; $2, $3: of the high halves. $4: the bytes. $5, $9, $13, $17:
# the levels' high bytes, four a register; $21, $25, $29, $33: their low bytes (in between the same again: Triton passes
# each table once for every byte). A selector's fourth bit means something else to prmt, so it is taken off, and picks
# from both results afterwards.
LOOK_UP = tl.constexpr("""{
    .reg .b32 select, pick, select2, pick2, a, b, upper, lower, upper2, lower2;
    and.b32 select, $4, 0x77777777;
    shr.b32 pick, $4, 1;
    lop3.b32 pick, pick, 0x44444444, 0x32103210, 0xEA;
    shr.b32 select2, select, 16;
    shr.b32 pick2, pick, 16;
    prmt.b32 a, $5, $9, select;
    prmt.b32 b, $13, $17, select;
    prmt.b32 upper, a, b, pick;
    prmt.b32 a, $21, $25, select;
    prmt.b32 b, $29, $33, select;
    prmt.b32 lower, a, b, pick;
    prmt.b32 a, $5, $9, select2;
    prmt.b32 b, $13, $17, select2;
    prmt.b32 upper2, a, b, pick2;
    prmt.b32 a, $21, $25, select2;
    prmt.b32 b, $29, $33, select2;
    prmt.b32 lower2, a, b, pick2;
    prmt.b32 $0, lower, upper, 0x6240;
    prmt.b32 $1, lower2, upper2, 0x6240;
    prmt.b32 $2, lower, upper, 0x7351;
    prmt.b32 $3, lower2, upper2, 0x7351;
}""")
_LOOK_UP_REGISTERS = tl.constexpr(",".join(["=r"] * 4 + ["r"] * (1 + 8 * 4)))

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, int, int]


def sample(device: torch.device, generator: torch.Generator) -> Arguments:
    """Arguments of `product` for the check at start-up: one row, 8 MiB of codes in blocks of 64."""
    num_outputs, num_columns = 4096, 4096
    packed = torch.randint(
        0, 256, (num_outputs * num_columns // 2,), dtype=torch.uint8, device=device, generator=generator
    )
    codebook = torch.randn(16, device=device, generator=generator)
    absmax = torch.rand(num_outputs * num_columns // 64, device=device, generator=generator)
    x = torch.randn(1, num_columns, device=device, generator=generator).to(torch.bfloat16)
    return x, packed, codebook, absmax, None, 64, num_outputs


def takes(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> bool:
    """True for few bf16 or fp16 rows and blocks that end where rows do."""
    has_step = block_size in (32, 64) or block_size % _MAX_STEP == 0
    return triton_split.takes_rows(x) and has_step and x.shape[-1] % block_size == 0


def product(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> Tensor:
    """`reference.codebook_linear` for arguments that `takes` accepts, with levels rounded to x's dtype."""
    num_columns = x.shape[-1]
    rows = x.reshape(-1, num_columns).contiguous()
    step = min(block_size, _MAX_STEP)
    plan = triton_split.plan(rows.shape[0], triton.cdiv(out_features, _BLOCK_OUTPUTS), num_columns // step, x.device)
    partial = triton_split.partial_sums(plan, rows, out_features)
    _codebook_sums[plan.grid](
        rows, packed, codebook, absmax, partial, rows.shape[0], out_features, num_columns, plan.steps_per_split,
        BLOCK_SIZE=block_size, BLOCK_ROWS=plan.block_rows, BLOCK_OUTPUTS=_BLOCK_OUTPUTS, STEP=step,
        HAS_PTX=not triton.knobs.runtime.interpret, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES,
    )  # fmt: skip
    return triton_split.finish(partial, x, bias)


@triton.jit
def _four_bytes(codebook_ptr, like, FIRST: tl.constexpr, SHIFT: tl.constexpr):
    """One byte (the one SHIFT bits up) of four levels in x's dtype, the level FIRST's in the lowest place."""
    table = tl.zeros((), tl.int32)
    for place in tl.static_range(4):
        level = tl.load(codebook_ptr + FIRST + place).to(like).to(tl.int16, bitcast=True).to(tl.int32)
        table |= ((level >> SHIFT) & 255) << (8 * place)
    return table


@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def _codebook_sums(  # noqa: PLR0913  # a kernel has no other way to get its arguments
    x_ptr,
    packed_ptr,
    codebook_ptr,
    absmax_ptr,
    partial_ptr,
    num_rows,
    num_outputs,
    num_columns,
    steps_per_split,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    HAS_PTX: tl.constexpr,
):
    """One split's part of (BLOCK_ROWS, BLOCK_OUTPUTS) outputs."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    split = tl.program_id(2)
    is_inside = output < num_outputs
    column = tl.arange(0, STEP)
    byte = tl.arange(0, STEP // 2)
    x_at = x_ptr + row * num_columns + column[None, :]
    # 64 bits: a vocabulary's matrix can have more than 2**31 weights
    code_at = packed_ptr + (output.to(tl.int64) * (num_columns // 2))[None, :] + byte[:, None]
    absmax_at = absmax_ptr + output.to(tl.int64) * (num_columns // BLOCK_SIZE)
    dtype = x_ptr.dtype.element_ty
    if HAS_PTX:
        upper0, upper1 = _four_bytes(codebook_ptr, dtype, 0, 8), _four_bytes(codebook_ptr, dtype, 4, 8)
        upper2, upper3 = _four_bytes(codebook_ptr, dtype, 8, 8), _four_bytes(codebook_ptr, dtype, 12, 8)
        lower0, lower1 = _four_bytes(codebook_ptr, dtype, 0, 0), _four_bytes(codebook_ptr, dtype, 4, 0)
        lower2, lower3 = _four_bytes(codebook_ptr, dtype, 8, 0), _four_bytes(codebook_ptr, dtype, 12, 0)
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), tl.float32)

    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, num_columns // STEP)):
        x = tl.load(x_at + step * STEP, mask=row < num_rows, other=0.0)
        codes = tl.load(code_at + step * (STEP // 2), mask=is_inside[None, :], other=0)
        absmax = tl.load(absmax_at + step * STEP // BLOCK_SIZE, mask=is_inside, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(x, (BLOCK_ROWS, STEP // 2, 2)))
        if HAS_PTX:
            low, high = tl.inline_asm_elementwise(
                LOOK_UP,
                _LOOK_UP_REGISTERS,
                [codes, upper0, upper1, upper2, upper3, lower0, lower1, lower2, lower3],
                dtype=(dtype, dtype),
                is_pure=True,
                pack=4,
            )
        else:
            low = tl.load(codebook_ptr + (codes & 15)).to(dtype)
            high = tl.load(codebook_ptr + (codes >> 4)).to(dtype)
        # the first of two columns has the high half
        total += tl.dot(odd, low, tl.dot(even, high)) * absmax[None, :]

    out_at = partial_ptr + (split.to(tl.int64) * num_rows + row) * num_outputs + output[None, :]
    tl.store(out_at, total, mask=(row < num_rows) & is_inside[None, :])
