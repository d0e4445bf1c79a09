"""The definition of every op in plain torch. It is slow and exact; each implementation is compared with it."""

import torch
from torch import Tensor


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y = x (q * s)^T + b, computed in fp32 (fp64 for fp64 input).

    x: (..., K), floating point. weight q: (N, K), int8. scale s: (N, 1), floating point, one step per output channel.
    bias b: (N,) or None. Returns (..., N) in x's dtype.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    product = x.to(dtype) @ (weight.to(dtype) * scale.to(dtype)).T
    if bias is not None:
        product = product + bias.to(dtype)
    return product.to(x.dtype)
