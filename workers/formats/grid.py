"""Uniform grids: the integers that stand for real weights, and back.

Symmetric: w' = q * s with q in [-(2**(b-1) - 1), 2**(b-1) - 1]. The grid has a zero and equal reach on both sides, so
there is no zero point to store and none to multiply.
"""

import torch
from torch import Tensor

from workers.protocol.errors import WorkerError, WorkerErrorCode

# Between these fp16, with its denormal numbers, holds every number of eight binary digits.
_FP16_RANGE = (2**-17, 2**15)
_SEARCH_STEPS = 16
_SEARCH_DIVISOR = 20


def largest_code(num_bits: int) -> int:
    """127 for 8 bits. -128 stays unused, so that -w has the negated code of w."""
    return int(2 ** (num_bits - 1) - 1)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """w' = q * s in fp32. codes: (N, K), integer; scale: (N, 1)."""
    return codes.to(torch.float32) * scale.to(torch.float32)


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """||w - w'|| / ||w|| in the Frobenius norm; 0 for a zero weight."""
    exact = weight.to(torch.float32)
    norm = torch.linalg.vector_norm(exact)
    return float(torch.linalg.vector_norm(exact - approximation) / norm) if norm > 0 else 0.0


def group_width(in_features: int, group_size: int) -> int:
    """Columns per group; -1 (a channel) and 0 (the whole tensor) take all of a row.

    Raises WorkerError (invalid_request) if the groups do not divide the row.
    """
    width = group_size if group_size > 0 else in_features
    if in_features % width:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"groups of {group_size} do not divide {in_features} input columns; choose a divisor or -1 for channels",
        )
    return width


def affine_grid(groups: Tensor, num_bits: int, is_symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The scale, rounded to `dtype` already, and the zero point of each group. groups: (..., g), fp32.

    Symmetric: max|w| / (2**(b-1) - 1) around 2**(b-1). Asymmetric: (max - min) / (2**b - 1), zero = round(-min / s),
    over a range that is stretched to hold 0, so that the zero point is a code itself. Returns (...) `dtype` and
    (...) uint8. Scales in fp16 have no more digits than bf16 has: the CPU's int4 op wants bf16 and loses nothing then.
    """
    middle = 2 ** (num_bits - 1)
    if is_symmetric:
        reach = groups.abs().amax(dim=-1)
        steps = largest_code(num_bits)
    else:
        low = groups.amin(dim=-1).clamp(max=0)
        reach = groups.amax(dim=-1).clamp(min=0) - low
        steps = 2**num_bits - 1
    if dtype is torch.float16:
        scale = (reach / steps).clamp(*_FP16_RANGE).to(torch.bfloat16).to(dtype)
    else:
        scale = (reach / steps).clamp(torch.finfo(dtype).tiny, torch.finfo(dtype).max).to(dtype)
    scale = torch.where(reach == 0, torch.ones_like(scale), scale)
    if is_symmetric:
        return scale, torch.full_like(scale, middle, dtype=torch.uint8)
    return scale, torch.round(-low / scale.to(torch.float32)).clamp(0, steps).to(torch.uint8)


def searched_grid(groups: Tensor, num_bits: int, is_symmetric: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `affine_grid`, over the range of each group that rounds with the least squared error: from all of it down to
    a quarter, in twentieths of it. A few cut weights cost less than the finer steps gain, the more so the fewer bits.
    """
    best_scale, best_zero = affine_grid(groups, num_bits, is_symmetric, dtype)
    least = _squared_error(groups, best_scale, best_zero, num_bits)
    for step in range(1, _SEARCH_STEPS):
        scale, zero = affine_grid(groups * (1 - step / _SEARCH_DIVISOR), num_bits, is_symmetric, dtype)
        error = _squared_error(groups, scale, zero, num_bits)
        is_better = error < least
        best_scale, best_zero = torch.where(is_better, scale, best_scale), torch.where(is_better, zero, best_zero)
        least = torch.where(is_better, error, least)
    return best_scale, best_zero


def _squared_error(groups: Tensor, scale: Tensor, zero: Tensor, num_bits: int) -> Tensor:
    """(...), summed over the last dimension of groups, (..., g)."""
    codes = affine_codes(groups, scale[..., None], zero[..., None], num_bits)
    values = (codes.to(torch.float32) - zero[..., None]) * scale.to(torch.float32)[..., None]
    return (values - groups).square().sum(dim=-1)


def affine_codes(weight: Tensor, scale: Tensor, zero: Tensor, num_bits: int) -> Tensor:
    """q = clip(round(w / s + z)), shapes broadcast. Returns uint8. 8-bit symmetric grids leave code 0 (-128) unused."""
    codes = torch.round(weight.to(torch.float32) / scale.to(torch.float32)) + zero
    low = int(num_bits == 8 and bool((zero == 2 ** (num_bits - 1)).all()))
    return codes.clamp_(low, 2**num_bits - 1).to(torch.uint8)
