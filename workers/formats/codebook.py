"""NF4 and FP4: sixteen levels a weight, one absmax for each run of weights through the flattened matrix."""

import torch
from torch import Tensor
from torch.nn import functional

from workers.formats.codes import CodebookCodes
from workers.formats.linear import QuantizedLinear, frozen
from workers.kernels import ops, weights


class CodebookLinear(QuantizedLinear):
    """y = x (codebook[q] * absmax)^T + b.

    packed: (ceil(N * K / 2),), uint8, the first code of two in the high half (bitsandbytes' order). codebook: (16,),
    fp32. absmax: (blocks,), fp32; double quantization is undone when the layer is built, half a bit per weight at
    blocks of 64, so that each number is the one that was stored.
    """

    op = "codebook_linear"

    def __init__(
        self,
        packed: Tensor,
        codebook: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        block_size: int,
        shape: tuple[int, int],
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.block_size = block_size
        self.packed = frozen(packed)
        self.codebook = frozen(codebook)
        self.absmax = frozen(absmax)
        self.bias = None if bias is None else frozen(bias)

    @classmethod
    def from_codes(
        cls, codes: CodebookCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "CodebookLinear":
        """The layer that multiplies with `codes`."""
        num_rows, num_columns = codes.codes.shape
        flat = codes.codes.reshape(-1)
        pairs = functional.pad(flat, (0, flat.shape[0] % 2)).reshape(-1, 2)
        return cls(
            ((pairs[:, 0] << 4) | pairs[:, 1]).to(device),
            codes.codebook.to(device, torch.float32),
            codes.block_absmax().to(device, torch.float32),
            bias,
            codes.block_size,
            (num_rows, num_columns),
        )

    def dequantize(self) -> Tensor:
        """codebook[q] * absmax in fp32."""
        shape = (self.out_features, self.in_features)
        return weights.codebook_weight(self.packed, self.codebook, self.absmax, self.block_size, shape, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.codebook_linear(
            x, self.packed, self.codebook, self.absmax, self.bias, self.block_size, self.out_features
        )
