"""Products with weights that are expanded a tile at a time, so that what is expanded never leaves the cache."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from workers.device import cpu_has_fast_bf16

# 1 MiB in fp32: half a core's second-level cache on the processors that this was measured on. Twice as many took 1.2
# times as long per weight.
TILE_WEIGHTS = 2**18


def rows_per_tile(in_features: int, multiple: int = 1) -> int:
    """Output channels in a tile of about TILE_WEIGHTS, a multiple of `multiple`."""
    return max(1, TILE_WEIGHTS // (in_features * multiple)) * multiple


def tiled_product(rows: Tensor, out_features: int, tile_rows: int, expand: Callable[[int, int], Tensor]) -> Tensor:
    """rows @ W^T with W made by expand(first row, row after the last) -> (that many, K), fp32.

    rows: (M, K). Returns (M, out_features): in bf16 for bf16 rows where the processor multiplies bf16 itself (both
    factors and the sums rounded once), else in fp32. For one row an fp32 product would be cheaper than rounding the
    tile (Zen 5: NF4 in 0.7 of the time, for 8 rows in as much), but then a row's numbers would depend on how many
    others there are.
    """
    dtype = torch.bfloat16 if rows.dtype is torch.bfloat16 and cpu_has_fast_bf16() else torch.float32
    x = rows.to(dtype)
    product = torch.empty(rows.shape[0], out_features, dtype=dtype)
    for start in range(0, out_features, tile_rows):
        end = min(start + tile_rows, out_features)
        product[:, start:end] = functional.linear(x, expand(start, end).to(dtype))
    return product


def finish(product: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """(M, N) -> (..., N) in x's dtype, bias added."""
    result = product.to(x.dtype)
    if bias is not None:
        result = result + bias.to(x.dtype)
    return result.reshape(*x.shape[:-1], product.shape[1])
