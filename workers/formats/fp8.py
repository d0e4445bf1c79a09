"""8-bit floats (E4M3) with one scale per row or per square tile; activations rounded to E4M3 too, or not."""

import torch
from torch import Tensor

from workers.formats.codes import Float8Codes
from workers.formats.linear import QuantizedLinear, frozen
from workers.kernels import ops, weights
from workers.protocol.errors import WorkerError, WorkerErrorCode

_NAN_BITS = 0x7F


class Float8Linear(QuantizedLinear):
    """y = x (v * s)^T + b. values v: (N, K), float8_e4m3fn. scale s: fp32, (N, 1), or per tile x tile weights.

    tile: 0 for one scale per row.
    """

    op = "float8_linear"

    def __init__(
        self, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = values.shape
        self.tile = tile
        self.has_dynamic_activations = has_dynamic_activations
        self.values = frozen(values)
        self.scale = frozen(scale)
        self.bias = None if bias is None else frozen(bias)

    @property
    def product_dtype(self) -> torch.dtype:
        """E4M3 where activations are rounded to it, else none shorter than theirs."""
        return torch.float8_e4m3fn if self.has_dynamic_activations else super().product_dtype

    @classmethod
    def from_codes(
        cls, codes: Float8Codes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "Float8Linear":
        """The layer that multiplies with `codes`. Raises WorkerError (variant_corrupt) if a weight is NaN."""
        if bool(((codes.values.view(torch.uint8) & _NAN_BITS) == _NAN_BITS).any()):
            raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "a weight stored in 8-bit floats is not a number")
        scale = codes.scale.to(device, torch.float32)
        return cls(codes.values.to(device), scale, bias, codes.tile or 0, codes.has_dynamic_activations)

    def dequantize(self) -> Tensor:
        """v * s in fp32."""
        return weights.float8_weight(self.values, self.scale, self.tile, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.float8_linear(x, self.values, self.scale, self.bias, self.tile, self.has_dynamic_activations)
