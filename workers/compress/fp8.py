"""FP8: weights as E4M3 numbers, each output channel scaled so that its largest becomes 448, E4M3's largest."""

import torch
from torch import Tensor

from workers.compress.rtn import require_finite
from workers.formats.codes import Float8Codes

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantize(weight: Tensor, has_dynamic_activations: bool) -> Float8Codes:
    """values = E4M3(w / scale), scale = max|row| / 448, fp32 (N, 1); 1 for a row of zeros. weight: (N, K).

    Raises WorkerError (variant_corrupt) for NaN or infinity.
    """
    require_finite(weight)
    exact = weight.to(torch.float32)
    absmax = exact.abs().amax(dim=1, keepdim=True)
    scale = (absmax / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(absmax == 0, torch.ones_like(scale), scale)
    # The cast to E4M3 gives NaN beyond 448, and fp32 division may land one step beyond.
    values = (exact / scale).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return Float8Codes(values=values, scale=scale, has_dynamic_activations=has_dynamic_activations)
