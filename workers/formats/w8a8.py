"""int8 weights times activations that are rounded to int8 token by token: the sums are integers."""

import torch
from torch import Tensor

from workers.formats.channel_int8 import ChannelInt8Linear
from workers.formats.codes import GridCodes
from workers.kernels import ops


class W8A8Linear(ChannelInt8Linear):
    """y = (q_x q_w^T) * s_x * s_w + b with weight q_w: (N, K) int8 and weight_scale s_w: (N, 1), floating point."""

    op = "w8a8_linear"

    @property
    def product_dtype(self) -> torch.dtype:
        """bf16, for how far two correct computations may differ.

        Where their activations differ in the last bit, some codes fall to the other side. In fp32 that is rare, and
        each time a step of absmax / 127, 3 % of a typical number: the outputs then agree as bf16's do.
        """
        return torch.bfloat16

    @classmethod
    def accepts(cls, codes: GridCodes) -> bool:
        """True for symmetric grids of one group per row, with int8 activations."""
        return codes.activation_bits == 8 and codes.scale.shape[1] == 1 and codes.is_symmetric

    @classmethod
    def from_codes(
        cls, codes: GridCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "W8A8Linear":
        """The layer that multiplies with `codes`, which it accepts. The scale keeps its stored dtype."""
        return cls(codes.signed().to(device), codes.scale.to(device), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.w8a8_linear(x, self.weight, self.weight_scale, self.bias)
