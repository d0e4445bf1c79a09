"""The contract of a compressed linear layer."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workers.kernels import ops


class QuantizedLinear(nn.Module):
    """A drop-in for nn.Linear whose weight is stored in another form.

    Subclasses hold their tensors as parameters, the weight's first, and define `forward` by the op that they name.
    """

    op: str
    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors of this layer."""
        return sum(tensor.nbytes for tensor in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the layer's tensors are."""
        return next(self.parameters()).device

    @property
    def product_dtype(self) -> torch.dtype:
        """The shortest dtype that the layer's op rounds activations to, whatever theirs is. fp32: it does not."""
        return ops.product_dtype(self.op, self.device)

    @property
    def kernel(self) -> str:
        """Which product the layer makes on its device, `ops.EMULATED` where it expands its weight for each."""
        return ops.kernel(self.op, self.device)

    @property
    def is_emulated(self) -> bool:
        """True where the layer is right and saves memory, and no time."""
        return self.kernel == ops.EMULATED

    def dequantize(self) -> Tensor:
        """The weight that the layer multiplies with: (out_features, in_features), fp32."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features), floating point. Returns (..., out_features) in x's dtype."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What `print(model)` shows of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter without gradient, of whatever dtype."""
    return nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLayout:
    """Dtype and shape of one stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
