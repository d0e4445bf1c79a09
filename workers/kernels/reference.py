"""The definition of every op in plain torch. It is slow and exact; each implementation is compared with it.

x: (..., K), floating point. bias: (N,) or None. Every op returns (..., N) in x's dtype and computes in fp32 (fp64 for
fp64 input).
"""

import torch
from torch import Tensor

from workers.kernels import rounding, weights


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y = x (q * s)^T + b. weight q: (N, K), int8. scale s: (N, 1), floating point, one step per output channel."""
    dtype = _wide(x)
    return _linear(x, weight.to(dtype) * scale.to(dtype), bias)


def int4_linear(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """y = x ((q - 8) * s + o)^T + b on 4-bit codes in groups of columns; see `weights.int4_weight`.

    packed: (blocks, K, R / 2), uint8 (int4_layout). scale_and_offset: (G, blocks * R, 2), floating point.
    """
    return _linear(x, weights.int4_weight(packed, scale_and_offset, out_features, _wide(x)), bias)


def grid_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_index: Tensor | None,
    bias: Tensor | None,
    activation_bits: int,
) -> Tensor:
    """y = x ((q - z) * s)^T + b on any uniform grid; see `weights.grid_weight`.

    activation_bits: 8 rounds each token of x to int8 first (`rounding.round_to_int8`), 0 leaves x as it is.
    """
    dtype = _wide(x)
    if activation_bits:
        token_codes, token_scale = rounding.round_to_int8(x.reshape(-1, x.shape[-1]))
        rounded = (token_codes.to(dtype) * token_scale).reshape(x.shape)
    else:
        rounded = x
    return _linear(rounded, weights.grid_weight(codes, scale, zero, group_index, dtype), bias).to(x.dtype)


def codebook_linear(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> Tensor:
    """y = x (codebook[q] * absmax)^T + b; see `weights.codebook_weight`."""
    shape = (out_features, x.shape[-1])
    return _linear(x, weights.codebook_weight(packed, codebook, absmax, block_size, shape, _wide(x)), bias)


def w8a8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y = (q_x q_w^T) * s_x * s_w + b, the sums of int8 products exact.

    q_x, s_x: each token of x rounded to int8. weight q_w: (N, K), int8. scale s_w: (N, 1), floating point.
    """
    codes, token_scale = rounding.round_to_int8(x.reshape(-1, x.shape[-1]))
    # fp64 holds every sum of up to 2**39 such products
    sums = codes.to(torch.float64) @ weight.to(torch.float64).T
    product = sums.to(_wide(x)) * token_scale * scale.to(_wide(x)).T
    return _finish(product.reshape(*x.shape[:-1], weight.shape[0]), x, bias)


def llm_int8_linear(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """LLM.int8() (arXiv:2208.07339): numbers of x at or above the threshold in floating point, the others as W8A8.

    weight q: (N, K), int8, standing for q * absmax / 127. absmax: (N,), fp32. threshold: 0 takes nothing out.

    The paper takes a column out for the whole batch as soon as one token reaches the threshold in it. Here each token
    has its own outliers, so that its output does not depend on what else is in the batch. For one token the two are the
    same. With several this one rounds some numbers below the threshold that the paper would have kept, by at most half
    a step of the token's largest number below the threshold, as those in every other column are.
    """
    dtype = _wide(x)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    is_outlier = outliers(rows, threshold)
    inliers = w8a8_linear(rows.masked_fill(is_outlier, 0), weight, absmax.unsqueeze(1) / 127, None)
    kept = rows.masked_fill(~is_outlier, 0) @ (weight.to(dtype) * (absmax.to(dtype) / 127).unsqueeze(1)).T
    return _finish((inliers + kept).reshape(*x.shape[:-1], weight.shape[0]), x, bias)


def outliers(rows: Tensor, threshold: float) -> Tensor:
    """(M, K), bool: the numbers that `llm_int8_linear` keeps in floating point."""
    return rows.abs() >= (threshold if threshold > 0 else torch.inf)


def float8_linear(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> Tensor:
    """y = x (v * s)^T + b; see `weights.float8_weight`.

    has_dynamic_activations: each token of x is rounded to E4M3 by its own absmax first (`rounding.round_to_float8`).
    """
    dtype = _wide(x)
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    if has_dynamic_activations:
        token_values, token_scale = rounding.round_to_float8(rows)
        rows = token_values.to(dtype) * token_scale
    product = rows @ weights.float8_weight(values, scale, tile, dtype).T
    return _finish(product.reshape(*x.shape[:-1], values.shape[0]), x, bias)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in the weight's dtype, then rounded to x's."""
    return _finish(x.to(weight.dtype) @ weight.T, x, bias)


def _finish(product: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        product = product + bias.to(product.dtype)
    return product.to(x.dtype)
