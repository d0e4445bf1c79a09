"""Products with weights of one byte, int8 or 8-bit float, read directly by a Triton kernel (W8A16), for few rows.

Every int8 and every E4M3 number is exact in bf16 and in fp16. Sums are in fp32; scales come after them, one per row at
the end, or one per square tile after each run of columns.
"""

import triton
import triton.language as tl
from torch import Tensor

from workers.kernels import triton_split

_STEPS = (128, 64, 32)
_BLOCK_OUTPUTS = 64
_NUM_WARPS = 4
_NUM_STAGES = 4


def step_of(num_columns: int, tile: int) -> int:
    """Columns that the kernel takes at a time, 0 where none of its steps divides K and the tile."""
    return next((step for step in _STEPS if num_columns % step == 0 and tile % step == 0), 0)


def takes(x: Tensor, tile: int) -> bool:
    """True for few bf16 or fp16 rows of a multiple of 32 columns. tile: 0 for one scale per row."""
    return triton_split.takes_rows(x) and step_of(x.shape[-1], tile) > 0


def product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int) -> Tensor:
    """y = x (v * s)^T + b. values v: (N, K), int8 or float8_e4m3fn. scale: (N, 1), or one per tile x tile weights."""
    num_outputs, num_columns = values.shape
    rows = x.reshape(-1, num_columns).contiguous()
    step = step_of(num_columns, tile)
    plan = triton_split.plan(rows.shape[0], triton.cdiv(num_outputs, _BLOCK_OUTPUTS), num_columns // step, x.device)
    partial = triton_split.partial_sums(plan, rows, num_outputs)
    _byte_sums[plan.grid](
        rows, values, scale.contiguous(), partial, rows.shape[0], num_outputs, num_columns, plan.steps_per_split,
        TILE=tile, BLOCK_ROWS=plan.block_rows, BLOCK_OUTPUTS=_BLOCK_OUTPUTS, STEP=step,
        num_warps=_NUM_WARPS, num_stages=_NUM_STAGES,
    )  # fmt: skip
    return triton_split.finish(partial, x, bias)


@triton.jit(do_not_specialize=["num_rows", "steps_per_split"])
def _byte_sums(  # noqa: PLR0913  # a kernel has no other way to get its arguments
    x_ptr,
    value_ptr,
    scale_ptr,
    partial_ptr,
    num_rows,
    num_outputs,
    num_columns,
    steps_per_split,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
):
    """One split's part of (BLOCK_ROWS, BLOCK_OUTPUTS) outputs."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    output = tl.program_id(1) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    split = tl.program_id(2)
    is_inside = output < num_outputs
    column = tl.arange(0, STEP)
    x_at = x_ptr + row * num_columns + column[None, :]
    # 64 bits: a vocabulary's matrix can have more than 2**31 bytes
    value_at = value_ptr + (output.to(tl.int64) * num_columns)[None, :] + column[:, None]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUTPUTS), tl.float32)

    first = split * steps_per_split
    for step in range(first, tl.minimum(first + steps_per_split, num_columns // STEP)):
        x = tl.load(x_at + step * STEP, mask=row < num_rows, other=0.0)
        values = tl.load(value_at + step * STEP, mask=is_inside[None, :], other=0.0).to(x.dtype)
        if TILE:
            scale_at = scale_ptr + output // TILE * tl.cdiv(num_columns, TILE) + step * STEP // TILE
            total += tl.dot(x, values) * tl.load(scale_at, mask=is_inside, other=0.0).to(tl.float32)[None, :]
        else:
            total = tl.dot(x, values, total)

    if not TILE:
        total *= tl.load(scale_ptr + output, mask=is_inside, other=0.0).to(tl.float32)[None, :]
    out_at = partial_ptr + (split.to(tl.int64) * num_rows + row) * num_outputs + output[None, :]
    tl.store(out_at, total, mask=(row < num_rows) & is_inside[None, :])
