"""GPTQ (arXiv:2210.17323): columns are rounded one by one, and each one's error is pushed into those still free.

How much goes where is read from the inverse Hessian of the layer's output error, H = 2 X X^T. Its upper Cholesky factor
holds, row by row, what repeated elimination of finished columns from H^-1 would give.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compress import rtn
from workers.formats import grid
from workers.formats.codes import GridCodes
from workers.protocol.errors import WorkerError, WorkerErrorCode

_BLOCK = 128


class HessianAccumulator:
    """Mean of 2 x x^T over all tokens, fp32: a mean, so that it does not grow with the number of tokens."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.mean = torch.zeros(in_features, in_features, device=device)
        self.num_tokens = 0

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in_features)."""
        if not len(inputs):
            return
        self.num_tokens += len(inputs)
        values = inputs.to(torch.float32)
        self.mean *= 1 - len(inputs) / self.num_tokens
        self.mean.addmm_(values.T, values, alpha=2 / self.num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqResult:
    """error_before (round to nearest), error_after: tr((W - Q) H (W - Q)^T). damp_percent: what was needed."""

    codes: GridCodes
    error_before: float
    error_after: float
    damp_percent: float


def quantize(
    weight: Tensor,
    hessian: Tensor,
    *,
    num_bits: int,
    group_size: int,
    is_symmetric: bool,
    act_order: bool,
    damp_percent: float,
    scale_dtype: torch.dtype = torch.float16,
) -> GptqResult:
    """weight: (N, K), floating point; hessian: (K, K), fp32, on the weight's device; neither is changed.

    act_order: columns with the largest diagonal first, on grids fixed beforehand, so groups stay runs of neighbours.
    Otherwise a group's grid is made when its first column is reached, from the weights as errors have moved them.
    Raises WorkerError: invalid_request if the groups do not divide K, variant_corrupt for numbers that are not finite.
    """
    rtn.require_finite(hessian)
    plain = rtn.quantize(
        weight, num_bits=num_bits, group_size=group_size, is_symmetric=is_symmetric, scale_dtype=scale_dtype
    )
    moving = weight.to(torch.float32, copy=True)
    # A column that never saw an input: its weights change no output, and its row of H is zero.
    dead = hessian.diagonal() == 0
    moving[:, dead] = 0
    is_static = act_order or group_size <= 0
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True) if act_order else None
    factor, used_percent = _inverse_factor(hessian, dead, order, damp_percent)
    scale, zero = plain.scale.clone(), plain.zero.clone()
    codes = torch.empty_like(plain.codes)
    columns = order if order is not None else torch.arange(weight.shape[1], device=weight.device)
    width = plain.group_size
    for start in range(0, len(columns), _BLOCK):
        block = columns[start : start + _BLOCK]
        end = start + len(block)
        errors = torch.empty(weight.shape[0], len(block), device=weight.device)
        for i, column in enumerate(block.tolist()):
            group = column // width
            if not is_static and column % width == 0:
                # Errors of this block have moved its own columns already; those beyond it wait for the block's end.
                beyond = (
                    moving[:, end : column + width] - errors[:, :i] @ factor[start : start + i, end : column + width]
                )
                entering = torch.cat([moving[:, column : min(end, column + width)], beyond], dim=1)
                scale[:, group], zero[:, group] = grid.affine_grid(entering, num_bits, is_symmetric, scale_dtype)
            values = moving[:, column]
            codes[:, column] = grid.affine_codes(values, scale[:, group], zero[:, group], num_bits)
            rounded = (codes[:, column].float() - zero[:, group].float()) * scale[:, group].float()
            at = start + i
            errors[:, i] = (values - rounded) / factor[at, at]
            moving[:, block[i + 1 :]] -= errors[:, i, None] * factor[at, None, at + 1 : end]
        moving[:, columns[end:]] -= errors @ factor[start:end, end:]
    found = GridCodes(num_bits=num_bits, codes=codes, scale=scale, zero=zero)
    return GptqResult(
        codes=found,
        error_before=output_error(weight, plain.dequantize(), hessian),
        error_after=output_error(weight, found.dequantize(), hessian),
        damp_percent=used_percent,
    )


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """tr((W - Q) H (W - Q)^T): twice the mean squared change of the outputs, summed over them."""
    difference = weight.to(torch.float32) - approximation
    return float(((difference @ hessian) * difference).sum())


def _inverse_factor(hessian: Tensor, dead: Tensor, order: Tensor | None, percent: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of (H + damping)^-1 with columns in `order`, and the damping that let it be factored."""
    damped = hessian.to(torch.float32, copy=True)
    damped.diagonal()[dead] = 1
    if order is not None:
        damped = damped[order][:, order]
    mean = float(damped.diagonal().mean())
    added = 0.0
    while True:
        damped.diagonal().add_(mean * (percent - added))
        added = percent
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper, percent
        if percent > 100:
            raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "the Hessian of a layer's inputs cannot be factored")
        percent *= 10
