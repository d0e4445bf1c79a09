"""What the layers with int8 weights and one scale per output channel have in common."""

from torch import Tensor

from workers.formats import grid
from workers.formats.linear import QuantizedLinear, frozen


class ChannelInt8Linear(QuantizedLinear):
    """Weight q: (N, K), int8, and weight_scale s: (N, 1), floating point, standing for q * s."""

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = frozen(weight)
        self.weight_scale = frozen(weight_scale)
        self.bias = None if bias is None else frozen(bias)

    def dequantize(self) -> Tensor:
        """q * s in fp32."""
        return grid.dequantize(self.weight, self.weight_scale)
