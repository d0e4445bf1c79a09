"""Uniform grids: the integers that stand for real weights, and back.

Symmetric: w' = q * s with q in [-(2**(b-1) - 1), 2**(b-1) - 1]. The grid has a zero and equal reach on both sides, so
there is no zero point to store and none to multiply.
"""

import torch
from torch import Tensor


def largest_code(num_bits: int) -> int:
    """127 for 8 bits. -128 stays unused, so that -w has the negated code of w."""
    return int(2 ** (num_bits - 1) - 1)


def channel_scales(weight: Tensor, num_bits: int, dtype: torch.dtype) -> Tensor:
    """One absmax scale per output channel: s = max|w| / (2**(b-1) - 1), as in LLM.int8() (arXiv:2208.07339).

    weight: (N, K), floating point, finite. Returns (N, 1) in `dtype`. An all-zero channel gets scale 1: 0 / 0 would be
    NaN. A channel too small for `dtype` gets its smallest normal number.
    """
    absmax = weight.to(torch.float32).abs().amax(dim=1, keepdim=True)
    scale = (absmax / largest_code(num_bits)).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def quantize(weight: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """q = clip(round(w / s)), ties to even. weight: (N, K); scale: (N, 1). Returns (N, K), int8.

    The scale is used as stored, after its rounding to a short dtype, so that rounding it costs no accuracy.
    """
    limit = largest_code(num_bits)
    codes = torch.round(weight.to(torch.float32) / scale.to(torch.float32))
    return codes.clamp_(-limit, limit).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """w' = q * s in fp32. codes: (N, K), integer; scale: (N, 1)."""
    return codes.to(torch.float32) * scale.to(torch.float32)


def relative_error(weight: Tensor, approximation: Tensor) -> float:
    """||w - w'|| / ||w|| in the Frobenius norm; 0 for a zero weight."""
    exact = weight.to(torch.float32)
    norm = torch.linalg.vector_norm(exact)
    return float(torch.linalg.vector_norm(exact - approximation) / norm) if norm > 0 else 0.0
