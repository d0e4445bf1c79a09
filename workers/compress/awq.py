"""AWQ (arXiv:2306.00978): input columns that see large activations are scaled up before rounding, so they lose less.

The layer before scales its outputs down by the same factors, so the exact function stays what it was. Then the range of
each group is shrunk where cutting its largest weights costs the outputs less than the finer steps gain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compress import rtn
from workers.compress.token_sample import Moments
from workers.compress.weight_grid import WeightGrid
from workers.formats import grid
from workers.protocol.errors import WorkerError, WorkerErrorCode

# The paper's code shrinks a range to one half at most, in steps of one twentieth.
_SHRINK_STEPS = 20
_MOST_SHRUNK = 0.5
# Weights at a time: what is computed from them stays in the cache.
_CHUNK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSearch:
    """scales: (K,), fp32, multiply input columns. losses: summed squared change of the outputs, alpha by alpha."""

    scales: Tensor
    alpha: float
    losses: list[float]


def search_scales(
    weights: list[Tensor], mean: Tensor, inputs: Tensor, points: WeightGrid, num_ratios: int
) -> ScaleSearch:
    """s = mean|x|**alpha, the alpha in [0, 1) whose rounded weights change the outputs least.

    weights: (N, K) each, of all linears that read this input; mean: (K,), of |x|; inputs: (tokens, K). The loss is the
    sum over the weights of ||X (W - W')^T||^2. Raises WorkerError: invalid_request for a group size that does not
    divide K, variant_corrupt for numbers that are not finite.
    """
    rtn.require_finite(inputs)
    moments = Moments(inputs.to(torch.float32))
    tried, losses = [], []
    for step in range(num_ratios):
        scales = mean.to(torch.float32).pow(step / num_ratios).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        loss = 0.0
        for weight in weights:
            scaled = weight * scales
            loss += moments.squared_norm(points.rounded(scaled).sub_(scaled).div_(scales))
        tried.append(scales)
        losses.append(loss)
    best = min(range(num_ratios), key=losses.__getitem__)
    if not torch.isfinite(tried[best]).all():
        raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "no finite scales were found for a layer's inputs")
    return ScaleSearch(scales=tried[best], alpha=best / num_ratios, losses=losses)


def search_clip(weight: Tensor, inputs: Tensor, points: WeightGrid) -> Tensor:
    """The largest magnitude to keep in each group of each row: (N, G), fp32; clamp to it before rounding.

    weight: (N, K), scaled already; inputs: (tokens, K), scaled back. Groups are judged one by one, each by its own
    share of the outputs, as in the paper's code.
    """
    rtn.require_finite(weight)
    num_rows, num_columns = weight.shape
    width = grid.group_width(num_columns, points.group_size)
    seen = inputs.to(torch.float32).reshape(len(inputs), -1, width).transpose(0, 1)
    gram = seen.transpose(1, 2) @ seen
    step = max(1, _CHUNK // num_columns)
    groups = weight.to(torch.float32).reshape(num_rows, -1, width)
    return torch.cat([_limits(groups[start : start + step], gram, points) for start in range(0, num_rows, step)])


def _limits(exact: Tensor, gram: Tensor, points: WeightGrid) -> Tensor:
    """exact: (N, G, g); gram: (G, g, g), of each group's inputs. Returns (N, G)."""
    absmax = exact.abs().amax(dim=-1, keepdim=True)
    best, least = absmax.clone(), torch.full_like(absmax, torch.inf)
    for step in range(int(_SHRINK_STEPS * _MOST_SHRUNK)):
        limit = absmax * (1 - step / _SHRINK_STEPS)
        clamped = exact.clamp(-limit, limit)
        difference = (points.nearest(clamped, clamped) - exact).transpose(0, 1)
        loss = ((difference @ gram) * difference).sum(dim=-1).T[..., None]
        is_better = loss < least
        best, least = torch.where(is_better, limit, best), torch.where(is_better, loss, least)
    return best[..., 0]


def clip(weight: Tensor, limits: Tensor) -> Tensor:
    """weight (N, K) clamped group by group to +-limits (N, G). Returns fp32."""
    groups = weight.to(torch.float32).reshape(*limits.shape, -1)
    return groups.clamp(-limits[..., None], limits[..., None]).reshape(weight.shape)
