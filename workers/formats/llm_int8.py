"""LLM.int8(): int8 times int8, but for the few large numbers of each token, which are multiplied in floating point."""

import torch
from torch import Tensor

from workers.formats import grid
from workers.formats.codes import OutlierCodes
from workers.formats.linear import QuantizedLinear, frozen
from workers.kernels import ops


class LlmInt8Linear(QuantizedLinear):
    """weight q: (N, K), int8, standing for q * absmax / 127. absmax: (N,), fp32. See `reference.llm_int8_linear`."""

    op = "llm_int8_linear"

    def __init__(self, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.threshold = threshold
        self.weight = frozen(weight)
        self.absmax = frozen(absmax)
        self.bias = None if bias is None else frozen(bias)

    @property
    def product_dtype(self) -> torch.dtype:
        """bf16; see `W8A8Linear.product_dtype`."""
        return torch.bfloat16

    @classmethod
    def from_codes(
        cls, codes: OutlierCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "LlmInt8Linear":
        """The layer that multiplies with `codes`."""
        return cls(codes.codes.to(device), codes.absmax.to(device, torch.float32), bias, codes.threshold)

    def dequantize(self) -> Tensor:
        """q * absmax / 127 in fp32."""
        return grid.dequantize(self.weight, (self.absmax / 127).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.llm_int8_linear(x, self.weight, self.absmax, self.bias, self.threshold)
