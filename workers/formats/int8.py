"""int8 weights with one scale per output channel: half the bytes of bf16, the products in floating point."""

import torch
from torch import Tensor

from workers.formats.channel_int8 import ChannelInt8Linear
from workers.formats.codes import GridCodes
from workers.kernels import ops

# bf16: the CPU's int8 op takes its scales in bf16, every activation dtype holds them exactly (but fp16, for channels
# under 6e-5), and because weights are rounded against the stored scale a short scale costs no accuracy.
SCALE_DTYPE = torch.bfloat16
_NUM_BITS = 8


class Int8Linear(ChannelInt8Linear):
    """y = x (q * s)^T + b with weight q: (N, K) int8 and weight_scale s: (N, 1), floating point."""

    op = "int8_linear"

    @classmethod
    def accepts(cls, codes: GridCodes) -> bool:
        """True for a symmetric 8-bit grid of one group per row, activations as they are."""
        is_plain = codes.num_bits == _NUM_BITS and codes.activation_bits is None and codes.scale.shape[1] == 1
        return is_plain and codes.is_symmetric

    @classmethod
    def from_codes(
        cls, codes: GridCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "Int8Linear":
        """The layer that multiplies with `codes`, which it accepts. The scale is shortened where that is exact."""
        short = codes.scale.to(SCALE_DTYPE)
        is_exact = torch.equal(short.to(torch.float32), codes.scale.to(torch.float32))
        return cls(codes.signed().to(device), (short if is_exact else codes.scale).to(device), bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.int8_linear(x, self.weight, self.weight_scale, self.bias)
