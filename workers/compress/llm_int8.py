"""LLM.int8() (arXiv:2208.07339): rows of int8 by their absmax. Which columns are outliers is decided at run time."""

import torch
from torch import Tensor

from workers.compress.rtn import require_finite
from workers.formats.codes import OutlierCodes


def quantize(weight: Tensor, threshold: float) -> OutlierCodes:
    """codes = round(w * 127 / max|row|). weight: (N, K), floating point; an all-zero row has absmax 0 and codes 0.

    Raises WorkerError (variant_corrupt) for NaN or infinity.
    """
    require_finite(weight)
    exact = weight.to(torch.float32)
    absmax = exact.abs().amax(dim=1)
    # A row of zeros: 0 / 0 would be NaN.
    divisor = torch.where(absmax == 0, torch.ones_like(absmax), absmax)[:, None]
    codes = torch.round(exact * (127.0 / divisor)).clamp_(-127, 127).to(torch.int8)
    return OutlierCodes(codes=codes, absmax=absmax, threshold=threshold)
