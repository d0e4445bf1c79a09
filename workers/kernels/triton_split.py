"""What the Triton kernels have in common: K is split among programs, and their sums are added in one fixed order.

A product with few rows is bound by reading the weights, and one output tile per program would leave most of the GPU
idle. So programs also divide the columns of x and leave partial sums, which a second kernel adds: without atomics, so
that the same input always gives the same bits. How K is split and in which order a tile is summed depends on the weight
and on the GPU alone, never on the number of rows: what a row gets does not depend on what else is in the batch.
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# 16 rows are the smallest tile of the tensor cores, 32 share each decoded weight. With 64 Triton takes instructions of
# Hopper alone (wgmma), which may sum in another order.
_BLOCK_ROWS = (16, 32)
# Beyond it, decoding the weight once and a product by cuBLAS cost less than decoding it for every 32 rows.
MAX_ROWS = 128
DTYPES = (torch.bfloat16, torch.float16)
# Resident at once by registers (about 128 a thread, 128 threads): more programs would only wait.
_PROGRAMS_PER_MULTIPROCESSOR = 3
# The first loads of a program wait for memory; with fewer steps than this it does little else.
_MIN_STEPS = 4
_SUM_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a product is divided among programs: row tiles x column tiles x splits of K."""

    block_rows: int
    num_row_tiles: int
    num_column_tiles: int
    num_splits: int
    steps_per_split: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Row tiles first: those that read the same weights run next to each other and find them in the L2 cache."""
        return self.num_row_tiles, self.num_column_tiles, self.num_splits


def plan(num_rows: int, num_column_tiles: int, num_steps: int, device: torch.device) -> Plan:
    """As many splits as fill the GPU. num_steps: runs of columns that the kernel takes at a time."""
    wanted = -(-_PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors(device) // num_column_tiles)
    num_splits = max(1, min(wanted, num_steps // _MIN_STEPS))
    steps_per_split = -(-num_steps // num_splits)
    block_rows = _BLOCK_ROWS[0] if num_rows <= _BLOCK_ROWS[0] else _BLOCK_ROWS[1]
    return Plan(
        block_rows=block_rows,
        num_row_tiles=-(-num_rows // block_rows),
        num_column_tiles=num_column_tiles,
        num_splits=-(-num_steps // steps_per_split),
        steps_per_split=steps_per_split,
    )


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """1 where there is no GPU, in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def takes_rows(x: Tensor) -> bool:
    """True for bf16 and fp16 rows, few enough and at least one. fp32 has no tensor cores that keep its precision."""
    return x.dtype in DTYPES and 0 < x.numel() <= MAX_ROWS * x.shape[-1]


def partial_sums(plan: Plan, rows: Tensor, out_features: int) -> Tensor:
    """(splits, M, N), fp32, for a kernel to fill."""
    return torch.empty(plan.num_splits, rows.shape[0], out_features, dtype=torch.float32, device=rows.device)


def finish(partial: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """The sum over splits and the bias, rounded once to x's dtype. partial: (splits, M, N), fp32. Returns (..., N)."""
    num_splits, num_rows, num_outputs = partial.shape
    result = torch.empty(*x.shape[:-1], num_outputs, dtype=x.dtype, device=x.device)
    _sum_splits[(-(-num_outputs // _SUM_BLOCK), num_rows)](
        partial, bias, result, num_rows, num_outputs, num_splits, HAS_BIAS=bias is not None, BLOCK=_SUM_BLOCK
    )
    return result


@triton.jit(do_not_specialize=["num_rows", "num_splits"])
def _sum_splits(
    partial_ptr, bias_ptr, out_ptr, num_rows, num_outputs, num_splits, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    is_inside = column < num_outputs
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(num_splits):
        total += tl.load(partial_ptr + (split * num_rows + row) * num_outputs + column, mask=is_inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=is_inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_outputs + column, total.to(out_ptr.dtype.element_ty), mask=is_inside)
