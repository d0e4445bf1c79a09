"""SmoothQuant (arXiv:2211.10438): activation outliers move into the weights, where a scale per channel absorbs them."""

import torch
from torch import Tensor

from workers.kernels import rounding


def smoothing_scales(activation_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|**alpha / max|W_j|**(1 - alpha): activations are divided by s, input columns multiplied by it.

    activation_absmax, weight_absmax: (K,), the second over all linears that read the input. Returns (K,), fp32. A
    column whose activations or weights are all zero keeps scale 1: no outlier could be moved there.
    """
    activations, weights = activation_absmax.to(torch.float32), weight_absmax.to(torch.float32)
    smallest = torch.finfo(torch.float16).tiny
    scales = activations.clamp(min=smallest) ** alpha / weights.clamp(min=smallest) ** (1 - alpha)
    return torch.where((activations == 0) | (weights == 0), torch.ones_like(scales), scales)


def round_tokens(inputs: Tensor) -> Tensor:
    """Each token at the points of int8 that it has in a W8A8 product. inputs: (tokens, K). Returns fp32."""
    codes, step = rounding.round_to_int8(inputs)
    return (codes * step).to(torch.float32)
