"""The ops on CUDA by plain torch: expand in the activation dtype, then one library product.

Memory is saved, time is not: each call writes and reads the expanded weight. This is right for many rows, which share
that cost. For few of them see `triton_choice`.
"""

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional

from workers.kernels import reference, rounding, weights

logger = logging.getLogger(__name__)

# What torch's product of 8-bit floats asks of both sizes of the weight.
_SCALED_MULTIPLE = 16
# From here on (Hopper) it takes a scale per row and per column.
_SCALED_CAPABILITY = (9, 0)


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
    """`reference.float8_linear`: rounded activations by `scaled_product` where it takes them.

    Otherwise with the weight and the product in x's dtype.
    """
    if has_dynamic_activations:
        if takes_scaled(x, values, tile):
            return scaled_product(x, values, scale, bias)
        x = round_activations(x)
    return _linear(x, weights.float8_weight(values, scale, tile, x.dtype), bias)


def round_activations(x: Tensor) -> Tensor:
    """Each token of x rounded to E4M3 by its own absmax, in x's dtype."""
    token_values, token_scale = rounding.round_to_float8(x.reshape(-1, x.shape[-1]))
    return (token_values.to(torch.float32) * token_scale).to(x.dtype).reshape(x.shape)


def takes_scaled(x: Tensor, values: Tensor, tile: int) -> bool:
    """True where `scaled_product` can be used: bf16, which is the dtype of its results, and one scale per row."""
    if not x.is_cuda or x.dtype is not torch.bfloat16 or x.numel() == 0 or tile:
        return False
    return all(size % _SCALED_MULTIPLE == 0 for size in values.shape) and has_scaled_product()


def scaled_product(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """(v_x v_w^T) * s_x * s_w + b by the tensor cores' product of 8-bit floats, sums in fp32. x: (..., K), bf16."""
    token_values, token_scale = rounding.round_to_float8(x.reshape(-1, x.shape[-1]))
    outputs = torch._scaled_mm(
        token_values, values.T, scale_a=token_scale, scale_b=scale.to(torch.float32).T, out_dtype=torch.bfloat16
    )
    result = outputs.reshape(*x.shape[:-1], values.shape[0])
    return result if bias is None else result + bias.to(x.dtype)


@functools.cache
def has_scaled_product() -> bool:
    """Whether this GPU and this torch have the product and it is right, tried once, on first use."""
    if torch.version.hip or torch.cuda.get_device_capability() < _SCALED_CAPABILITY:
        return False
    generator = torch.Generator("cuda").manual_seed(0)
    values = torch.randn(96, 160, device="cuda", generator=generator).to(rounding.FLOAT8)
    scale = torch.rand(96, 1, device="cuda", generator=generator) + 0.1
    x = torch.randn(3, 160, device="cuda", generator=generator).to(torch.bfloat16)
    try:
        result = scaled_product(x, values, scale, None)
    except (AttributeError, RuntimeError, ValueError) as error:
        logger.warning("torch's product of 8-bit floats does not run here: %s", error)
        return False
    expected = reference.float8_linear(x, values, scale, None, 0, True)
    # both rounded to bf16 once, from sums in fp32 of equal terms
    return torch.allclose(result, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _integer_sums(codes: Tensor, weight: Tensor) -> Tensor:
    """(M, K) times (N, K)^T, int8, in fp32. The library's product wants more than 16 rows and multiples of 8."""
    if codes.shape[1] % 8 or weight.shape[0] % 8:
        return functional.linear(codes.to(torch.float32), weight.to(torch.float32))
    num_rows = codes.shape[0]
    padded = functional.pad(codes, (0, 0, 0, max(0, 17 - num_rows)))
    return torch._int_mm(padded, weight.T)[:num_rows].to(torch.float32)
