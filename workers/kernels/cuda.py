"""The ops on CUDA by plain torch: expand in the activation dtype, then one library product.

Memory is saved, time is not: each call writes and reads the expanded weight.
"""

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import reference, rounding, weights


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.int8_linear` with q * s rounded to x's dtype and the product in x's dtype.

    The scale is folded in before the product: unscaled, sums of fp16 terms could pass 65,504.
    """
    return _linear(x, weight.to(x.dtype) * scale.to(x.dtype), bias)


def int4_linear(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`reference.int4_linear` with the weight and the product in x's dtype."""
    return _linear(x, weights.int4_weight(packed, scale_and_offset, out_features, x.dtype), bias)


def grid_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_index: Tensor | None,
    bias: Tensor | None,
    activation_bits: int,
) -> Tensor:
    """`reference.grid_linear` with the weight and the product in x's dtype."""
    if activation_bits:
        token_codes, token_scale = rounding.round_to_int8(x.reshape(-1, x.shape[-1]))
        x = (token_codes * token_scale).to(x.dtype).reshape(x.shape)
    return _linear(x, weights.grid_weight(codes, scale, zero, group_index, x.dtype), bias)


def codebook_linear(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> Tensor:
    """`reference.codebook_linear` with the weight and the product in x's dtype."""
    shape = (out_features, x.shape[-1])
    return _linear(x, weights.codebook_weight(packed, codebook, absmax, block_size, shape, x.dtype), bias)


def w8a8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a8_linear` with fp32 sums: those past 2**24 are rounded, by a relative 2**-24."""
    codes, token_scale = rounding.round_to_int8(x.reshape(-1, x.shape[-1]))
    sums = _integer_sums(codes, weight)
    product = (sums * token_scale * scale.to(torch.float32).T).to(x.dtype)
    result = product.reshape(*x.shape[:-1], weight.shape[0])
    return result if bias is None else result + bias.to(x.dtype)


def llm_int8_linear(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """`reference.llm_int8_linear`; the outliers' product takes the whole weight, so that no shape depends on data."""
    is_outlier = reference.outliers(x, threshold)
    scale = (absmax / 127).unsqueeze(1)
    inliers = w8a8_linear(x.masked_fill(is_outlier, 0), weight, scale, None)
    return inliers + int8_linear(x.masked_fill(~is_outlier, 0), weight, scale, bias)


def float8_linear(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> Tensor:
    """`reference.float8_linear` with the weight and the product in x's dtype."""
    if has_dynamic_activations:
        token_values, token_scale = rounding.round_to_float8(x.reshape(-1, x.shape[-1]))
        x = (token_values.to(torch.float32) * token_scale).to(x.dtype).reshape(x.shape)
    return _linear(x, weights.float8_weight(values, scale, tile, x.dtype), bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _integer_sums(codes: Tensor, weight: Tensor) -> Tensor:
    """(M, K) times (N, K)^T, int8, in fp32. The library's product wants more than 16 rows and multiples of 8."""
    if codes.shape[1] % 8 or weight.shape[0] % 8:
        return functional.linear(codes.to(torch.float32), weight.to(torch.float32))
    num_rows = codes.shape[0]
    padded = functional.pad(codes, (0, 0, 0, max(0, 17 - num_rows)))
    return torch._int_mm(padded, weight.T)[:num_rows].to(torch.float32)
