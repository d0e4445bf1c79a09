"""Uniform grids that no faster layer takes: 8 bits in groups or with zero points, odd groups, grouped W8A8.

One byte per weight. Right everywhere, fast nowhere.
"""

import torch
from torch import Tensor

from workers.formats import columns
from workers.formats.codes import GridCodes
from workers.formats.linear import QuantizedLinear, frozen
from workers.kernels import ops, weights


class GridLinear(QuantizedLinear):
    """y = x[columns] ((q - z) * s)^T + b.

    codes q: (N, K), uint8. scale s, zero z: (N, G). group_index: (K,), int64, only where groups have unequal sizes.
    activation_bits: 8 rounds each token to int8 first, 0 does not.
    """

    op = "grid_linear"

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor,
        group_index: Tensor | None,
        column_order: Tensor | None,
        bias: Tensor | None,
        activation_bits: int,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.activation_bits = activation_bits
        self.codes = frozen(codes)
        self.scale = frozen(scale)
        self.zero = frozen(zero)
        self.group_index = None if group_index is None else frozen(group_index)
        self.column_order = None if column_order is None else frozen(column_order)
        self.bias = None if bias is None else frozen(bias)

    @property
    def product_dtype(self) -> torch.dtype:
        """bf16 where activations are rounded to int8; see `W8A8Linear.product_dtype`."""
        return torch.bfloat16 if self.activation_bits else super().product_dtype

    @classmethod
    def from_codes(
        cls, codes: GridCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "GridLinear":
        """The layer that multiplies with `codes`. The scale keeps its stored dtype."""
        runs, order = columns.in_equal_runs(codes)
        return cls(
            runs.codes.to(device),
            runs.scale.to(device),
            runs.zero.to(device),
            None if runs.group_index is None else runs.group_index.to(device),
            None if order is None else order.to(device),
            bias,
            codes.activation_bits or 0,
        )

    def dequantize(self) -> Tensor:
        """(q - z) * s in fp32, columns where x has them."""
        weight = weights.grid_weight(self.codes, self.scale, self.zero, self.group_index, torch.float32)
        return columns.scattered(weight, self.column_order)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        ordered = columns.select(x, self.column_order)
        return ops.grid_linear(
            ordered, self.codes, self.scale, self.zero, self.group_index, self.bias, self.activation_bits
        )
