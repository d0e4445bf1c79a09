"""GPTQ (arXiv:2210.17323): columns are rounded one by one, and each one's error is pushed into those still free.

How much goes where is read from the inverse Hessian of the layer's output error, H = 2 X X^T. Its upper Cholesky factor
holds, row by row, what repeated elimination of finished columns from H^-1 would give.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.compress import rtn
from workers.compress.weight_grid import WeightGrid
from workers.formats import grid
from workers.formats.codes import GridCodes
from workers.protocol.errors import WorkerError, WorkerErrorCode

_BLOCK = 128


class HessianAccumulator:
    """Mean of 2 x x^T over all tokens, fp32: a mean, so that it does not grow with the number of tokens."""

    def __init__(self, in_features: int) -> None:
        self.num_tokens = 0
        self._in_features = in_features
        self._mean: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """(K, K), on the device of the inputs; zeros before the first token."""
        return torch.zeros(self._in_features, self._in_features) if self._mean is None else self._mean

    @torch.inference_mode()
    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in_features)."""
        if not len(inputs):
            return
        self.num_tokens += len(inputs)
        values = inputs.to(torch.float32)
        if self._mean is None:
            self._mean = self.mean.to(values.device)
        self._mean.mul_(1 - len(inputs) / self.num_tokens)
        self._mean.addmm_(values.T, values, alpha=2 / self.num_tokens)

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """||X (W - W')^T|| / ||X W^T|| over all tokens; 0 where the outputs are."""
        return self.relative(weight, output_error(weight - approximation, self.mean))

    def relative(self, weight: Tensor, error: float) -> float:
        """What an output error of this weight is, relative to its outputs."""
        exact = output_error(weight, self.mean)
        return (max(0.0, error) / exact) ** 0.5 if exact > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqResult:
    """plain: rounded to nearest. error_before (of plain), error_after: tr((W - Q) H (W - Q)^T). damp_percent: what was
    needed.
    """

    codes: GridCodes
    plain: GridCodes
    error_before: float
    error_after: float
    damp_percent: float


def quantize(
    weight: Tensor, hessian: Tensor, points: WeightGrid, *, act_order: bool, damp_percent: float
) -> GptqResult:
    """weight: (N, K), floating point; hessian: (K, K), fp32, on the weight's device; neither is changed.

    act_order: columns with the largest diagonal first, on grids fixed beforehand, so groups stay runs of neighbours.
    Otherwise a group's grid is made when its first column is reached, from the weights as errors have moved them.
    Raises WorkerError: invalid_request if the groups do not divide K, variant_corrupt for numbers that are not finite.
    """
    rtn.require_finite(hessian)
    plain = replace(points, is_searched=False).codes(weight)
    # A column that never saw an input: its weights change no output, and its row of H is zero.
    dead = hessian.diagonal() == 0
    order = torch.arange(weight.shape[1], device=weight.device)
    if act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor, used_percent = _inverse_factor(hessian, order, dead, damp_percent)
    moving = torch.where(dead, 0, weight.to(torch.float32))[:, order]
    start = points.codes(weight) if points.is_searched else plain
    has_moving_grids = not act_order and points.group_size > 0
    found = _push_errors(moving, factor, order, start, points if has_moving_grids else None)
    return GptqResult(
        codes=found,
        plain=plain,
        error_before=output_error(weight - plain.dequantize(), hessian),
        error_after=output_error(weight - found.dequantize(), hessian),
        damp_percent=used_percent,
    )


def _push_errors(
    moving: Tensor, factor: Tensor, order: Tensor, plain: GridCodes, points: WeightGrid | None
) -> GridCodes:
    """Round column by column. moving: (N, K), its columns in `order`, is used up; factor: (K, K), in the same order.

    plain: on the grids to begin with. points: makes a group's grid anew when its first column is reached; `order` is
    the columns' own then. None: the grids stay.
    """
    num_bits, width = plain.num_bits, plain.group_size
    scale, zero = plain.scale.clone(), plain.zero.clone()
    codes = torch.empty_like(plain.codes)
    groups = (order // width).tolist()
    for start in range(0, moving.shape[1], _BLOCK):
        end = min(start + _BLOCK, moving.shape[1])
        errors = torch.empty(moving.shape[0], end - start, device=moving.device)
        for at in range(start, end):
            i, group = at - start, groups[at]
            if points is not None and at % width == 0:
                # Errors of this block have moved its own columns already; those beyond it wait for the block's end.
                beyond = moving[:, end : at + width] - errors[:, :i] @ factor[start:at, end : at + width]
                entering = torch.cat([moving[:, at : min(end, at + width)], beyond], dim=1)
                scale[:, group], zero[:, group] = points.make(entering, num_bits, points.is_symmetric, scale.dtype)
            values = moving[:, at]
            codes[:, at] = grid.affine_codes(values, scale[:, group], zero[:, group], num_bits)
            rounded = (codes[:, at].float() - zero[:, group].float()) * scale[:, group].float()
            errors[:, i] = (values - rounded) / factor[at, at]
            moving[:, at + 1 : end] -= errors[:, i, None] * factor[at, None, at + 1 : end]
        moving[:, end:] -= errors @ factor[start:end, end:]
    in_order = torch.empty_like(codes)
    in_order[:, order] = codes
    return GridCodes(num_bits=num_bits, codes=in_order, scale=scale, zero=zero)


def output_error(difference: Tensor, hessian: Tensor) -> float:
    """tr(D H D^T): twice the mean squared change of the outputs, summed over them. difference: (N, K)."""
    exact = difference.to(torch.float32)
    return float(((exact @ hessian) * exact).sum())


def _inverse_factor(hessian: Tensor, order: Tensor, dead: Tensor, percent: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of (H + damping)^-1, rows and columns in `order`, and the damping that let it be factored.

    Takes the memory of three Hessians beside the given one: each is let go as soon as the next one is there.
    """
    backwards = order.flip(0)
    diagonal = torch.where(dead, 1, hessian.diagonal().to(torch.float32))[order]
    mean = float(diagonal.mean())
    while True:
        # H = R R^T with R upper is the usual factorization from the last row to the first; then H^-1 = R^-T R^-1. The
        # inverse itself, which would cost as much again and some digits, is not needed.
        lower, failed = torch.linalg.cholesky_ex(_damped(hessian, backwards, (diagonal + mean * percent).flip(0)))
        if not failed:
            upper = lower.flip(0, 1)
            del lower
            upper = torch.linalg.solve_triangular(upper, torch.eye(len(upper), device=upper.device), upper=True)
            if bool(torch.isfinite(upper).all()):
                return upper, percent
        if percent > 100:
            raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "the Hessian of a layer's inputs cannot be factored")
        percent *= 10


def _damped(hessian: Tensor, order: Tensor, diagonal: Tensor) -> Tensor:
    """H with rows and columns in `order`, fp32, and this diagonal."""
    matrix = hessian[order[:, None], order].to(torch.float32)
    matrix.diagonal().copy_(diagonal)
    return matrix
