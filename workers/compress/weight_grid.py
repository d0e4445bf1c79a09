"""Which uniform grid a method's weights go to, and plain rounding to it, which GPTQ and AWQ are measured against."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compress import rtn
from workers.compress.rtn import MakeGrid
from workers.formats import grid
from workers.formats.codes import GridCodes


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGrid:
    """See rtn.quantize. is_searched: grids over a part of each group's range, see `grid.searched_grid`."""

    num_bits: int
    group_size: int
    is_symmetric: bool
    scale_dtype: torch.dtype = torch.float16
    is_searched: bool = False

    @property
    def make(self) -> MakeGrid:
        """What gives groups their scales and zero points."""
        return grid.searched_grid if self.is_searched else grid.affine_grid

    def codes(self, weight: Tensor) -> GridCodes:
        """weight: (N, K), floating point. Raises as rtn.quantize."""
        return rtn.on_grid(
            weight, self.num_bits, self.group_size, self.is_symmetric, self.scale_dtype, make_grid=self.make
        )

    def rounded(self, weight: Tensor) -> Tensor:
        """(N, K), fp32: what `codes` stand for, without checking the weight and making them."""
        groups = weight.reshape(len(weight), -1, grid.group_width(weight.shape[1], self.group_size))
        return self.nearest(groups, weight.reshape(1, 1, -1) if self.group_size == 0 else groups).reshape(weight.shape)

    def nearest(self, groups: Tensor, ranged: Tensor) -> Tensor:
        """groups: (..., g), fp32, on the grids of what `ranged`, (..., any), spans."""
        scale, zero = self.make(ranged, self.num_bits, self.is_symmetric, self.scale_dtype)
        scale, zero = scale[..., None], zero[..., None]
        codes = grid.affine_codes(groups, scale, zero, self.num_bits)
        return (codes.to(torch.float32) - zero.to(torch.float32)) * scale.to(torch.float32)
