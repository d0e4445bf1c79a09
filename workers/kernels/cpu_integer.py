"""int8 times int8 on the CPU, for W8A8 and LLM.int8().

torch's `_int_mm` sums in int32, by the processor's integer dot products where it has them: exact for rows of up to
2**17 columns. With one column it returned wrong sums (torch 2.13), so that case goes the other way, as all do on a
machine where a check fails: fp32 products of the integers, in runs short enough that every sum is exact.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import reference, rounding
from workers.kernels.tiles import finish, rows_per_tile
from workers.kernels.timing import is_worth_it

# 1,040 products of 127 * 127 stay below 2**24, where fp32 has every integer; rounded down for whole cache lines.
_EXACT_COLUMNS = 1024
# rows, outputs, columns: odd ones too, and one with more columns than a run
_CHECK_SHAPES = ((1, 64, 64), (3, 33, 70), (17, 7, 13), (2, 5, 1100))
_TIMED_SHAPE = (1, 2048, 1024)


def w8a8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a8_linear` for CPU tensors."""
    codes, token_scale = rounding.round_to_int8(x.reshape(-1, x.shape[-1]))
    sums = integer_product(codes, weight)
    return finish(sums.to(torch.float32) * token_scale * scale.to(torch.float32).T, x, bias)


def llm_int8_linear(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """`reference.llm_int8_linear` for CPU tensors: only columns with an outlier in some row are expanded."""
    rows = x.reshape(-1, x.shape[-1]).to(torch.float32)
    is_outlier = reference.outliers(rows, threshold)
    scale = absmax.to(torch.float32) / 127
    product = w8a8_linear(rows.masked_fill(is_outlier, 0), weight, scale.unsqueeze(1), None)
    columns = is_outlier.any(dim=0).nonzero().squeeze(1)
    if columns.numel():
        kept = rows.masked_fill(~is_outlier, 0)[:, columns]
        product += functional.linear(kept, weight[:, columns].to(torch.float32)) * scale
    return finish(product, x, bias)


def integer_product(codes: Tensor, weight: Tensor) -> Tensor:
    """q_x q_w^T, exact. codes: (M, K), int8. weight: (N, K), int8. Returns (M, N), int32."""
    if codes.shape[1] > 1 and codes.shape[0] > 0 and integer_op_wins():
        return torch._int_mm(codes, weight.T)
    return chunked_product(codes, weight)


def chunked_product(codes: Tensor, weight: Tensor) -> Tensor:
    """The same by fp32 products of `_EXACT_COLUMNS` columns at a time."""
    num_columns = codes.shape[1]
    result = torch.zeros(codes.shape[0], weight.shape[0], dtype=torch.int32)
    tile_rows = rows_per_tile(min(num_columns, _EXACT_COLUMNS))
    for first in range(0, num_columns, _EXACT_COLUMNS):
        columns = slice(first, first + _EXACT_COLUMNS)
        x = codes[:, columns].to(torch.float32)
        for start in range(0, weight.shape[0], tile_rows):
            tile = weight[start : start + tile_rows, columns].to(torch.float32)
            result[:, start : start + tile_rows] += functional.linear(x, tile).to(torch.int32)
    return result


@functools.cache
def integer_op_wins() -> bool:
    """Whether `_int_mm` is exact on this machine and not slower than fp32 for one row; tried once, on first use."""
    generator = torch.Generator().manual_seed(0)

    def operands(num_rows: int, num_outputs: int, num_columns: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(-127, 128, (num_rows, num_columns), dtype=torch.int8, generator=generator)
        weight = torch.randint(-128, 128, (num_outputs, num_columns), dtype=torch.int8, generator=generator)
        return codes, weight

    for shape in _CHECK_SHAPES:
        codes, weight = operands(*shape)
        if not torch.equal(torch._int_mm(codes, weight.T), chunked_product(codes, weight)):
            return False
    codes, weight = operands(*_TIMED_SHAPE)
    return is_worth_it(lambda: torch._int_mm(codes, weight.T), lambda: chunked_product(codes, weight))
