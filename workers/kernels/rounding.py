"""Rounding of activations, each token by its own absmax, as the ops with short activations define it.

Per token and never per batch: what a request gets must not depend on its neighbours.
"""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
_INT8_LIMIT = 127
_FLOAT8_LIMIT = float(torch.finfo(FLOAT8).max)


def round_to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """q = round(x / s) with s = max|x| / 127 of each row, ties to even (LLM.int8(), arXiv:2208.07339).

    rows: (M, K), floating point. Returns q: (M, K) int8 and s: (M, 1), fp32 (fp64 for fp64 rows). A row of zeros has
    scale 1. A row with a number that is not finite has a scale that is not, and so has no finite product.
    """
    x = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scale = _scales(x, _INT8_LIMIT)
    return (x / scale).round_().clamp_(-_INT8_LIMIT, _INT8_LIMIT).to(torch.int8), scale


def round_to_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """v = E4M3(x / s) with s = max|x| / 448 of each row: (M, K) float8_e4m3fn and (M, 1), as `round_to_int8`."""
    x = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scale = _scales(x, _FLOAT8_LIMIT)
    # clamped first: past 448 the cast gives NaN
    return (x / scale).clamp_(-_FLOAT8_LIMIT, _FLOAT8_LIMIT).to(FLOAT8), scale


def _scales(x: Tensor, limit: float) -> Tensor:
    absmax = x.abs().amax(dim=1, keepdim=True)
    # tiny: the quotient of two denormal numbers can be 0, and 0 / 0 is NaN
    scale = (absmax / limit).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)
