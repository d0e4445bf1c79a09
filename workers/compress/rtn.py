"""Round to nearest: every weight goes to the closest point of its channel's grid. No data, no search.

With 8 bits and one scale per output channel this loses about 0.8 % of each weight matrix's norm, which moves the
next-token distribution by less than 0.001 nats on trained models. At 4 bits it is the baseline that others beat.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workers.formats import grid
from workers.formats.codes import GridCodes
from workers.protocol.errors import WorkerError, WorkerErrorCode

# (groups, num_bits, is_symmetric, dtype of scales) -> scale and zero of each group; see `grid.affine_grid`.
MakeGrid = Callable[[Tensor, int, bool, torch.dtype], tuple[Tensor, Tensor]]


def quantize(
    weight: Tensor, *, num_bits: int, group_size: int, is_symmetric: bool, scale_dtype: torch.dtype = torch.float16
) -> GridCodes:
    """Every weight at the nearest point of its group's grid.

    weight: (N, K), floating point. group_size: -1 for a channel, 0 for the whole tensor. scale_dtype: as the layout
    will store it; codes are chosen for the rounded scale. Raises WorkerError: invalid_request if the groups do not
    divide K, variant_corrupt for NaN or infinity.
    """
    return on_grid(weight, num_bits, group_size, is_symmetric, scale_dtype, grid.affine_grid)


def on_grid(
    weight: Tensor,
    num_bits: int,
    group_size: int,
    is_symmetric: bool,
    scale_dtype: torch.dtype,
    make_grid: MakeGrid,
) -> GridCodes:
    """As `quantize`, on grids of another make."""
    require_finite(weight)
    num_rows, num_columns = weight.shape
    exact = weight.to(torch.float32)
    groups = exact.reshape(num_rows, -1, grid.group_width(num_columns, group_size))
    ranged = exact.reshape(1, 1, -1) if group_size == 0 else groups
    scale, zero = make_grid(ranged, num_bits, is_symmetric, scale_dtype)
    scale, zero = (found.expand(num_rows, groups.shape[1]).contiguous() for found in (scale, zero))
    codes = grid.affine_codes(groups, scale[..., None], zero[..., None], num_bits)
    return GridCodes(num_bits=num_bits, codes=codes.reshape(num_rows, num_columns), scale=scale, zero=zero)


def require_finite(weight: Tensor) -> None:
    """Raise WorkerError (variant_corrupt) for a weight with NaN or infinity."""
    if not torch.isfinite(weight).all():
        raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "a weight of the base model is NaN or infinite")
