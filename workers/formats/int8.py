"""int8 weights with one scale per output channel: half the bytes of bf16, the products in floating point.

On disk this is compressed-tensors' `int-quantized` with symmetric channel scales and no activation scheme.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.formats import grid
from workers.formats.codes import GridCodes
from workers.formats.linear import QuantizedLinear, TensorLayout
from workers.kernels import ops

# bf16: the CPU's int8 op takes its scales in bf16, every activation dtype holds them exactly (but fp16, for channels
# under 6e-5), and because weights are rounded against the stored scale a short scale costs no accuracy.
SCALE_DTYPE = torch.bfloat16
_NUM_BITS = 8
_DISK_FORMAT = "int-quantized"


class Int8Linear(QuantizedLinear):
    """y = x (q * s)^T + b with weight q: (N, K) int8 and weight_scale s: (N, 1), floating point."""

    op = "int8_linear"

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(weight_scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

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

    def dequantize(self) -> Tensor:
        """q * s in fp32."""
        return grid.dequantize(self.weight, self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        return ops.int8_linear(x, self.weight, self.weight_scale, self.bias)


class Int8Format:
    """The format of `Int8Linear`."""

    name = "int8"
    num_bits = _NUM_BITS

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """True for compressed-tensors int-quantized: 8 bits, symmetric, per channel, activations as they are."""
        if quantization_config.get("quant_method") != "compressed-tensors":
            return False
        groups = quantization_config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            return False
        return all(_is_int8_channel(group, quantization_config.get("format")) for group in groups.values())

    def quantization_config(self, ignore: list[str]) -> dict[str, Any]:
        """The compressed-tensors description, as transformers and vLLM read it."""
        weights = {
            "num_bits": _NUM_BITS, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None,
            "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {},
        }  # fmt: skip
        group = {
            "targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None,
            # Said here too: from the weights alone compressed-tensors infers pack-quantized.
            "format": _DISK_FORMAT,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors",
            "format": _DISK_FORMAT,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": ignore,
            "kv_cache_scheme": None,
        }

    def layout(self, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """weight (N, K) int8 and weight_scale (N, 1) bf16."""
        return {
            "weight": TensorLayout(dtype=torch.int8, shape=(out_features, in_features)),
            "weight_scale": TensorLayout(dtype=SCALE_DTYPE, shape=(out_features, 1)),
        }

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True for an int8 matrix with one floating scale per row."""
        weight, scale = stored.get("weight"), stored.get("weight_scale")
        if weight is None or scale is None or weight.dtype is not torch.int8 or len(weight.shape) != 2:
            return False
        return scale.dtype.is_floating_point and scale.shape == (weight.shape[0], 1)

    def empty_linear(self, linear: nn.Linear, stored: Mapping[str, TensorLayout]) -> Int8Linear:
        """An `Int8Linear` of the stored scale dtype, with `linear`'s bias."""
        device = linear.weight.device
        tensors = {
            name: torch.empty(stored[name].shape, dtype=stored[name].dtype, device=device)
            for name in ("weight", "weight_scale")
        }
        return Int8Linear(tensors["weight"], tensors["weight_scale"], linear.bias)


def _is_int8_channel(group: Any, default_format: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(weights := group.get("weights"), dict):
        return False
    wanted = {"num_bits": _NUM_BITS, "type": "int", "strategy": "channel"}
    return (
        all(weights.get(key) == value for key, value in wanted.items())
        and weights.get("symmetric", True) is True
        and group.get("input_activations") is None
        and (group.get("format") or default_format) == _DISK_FORMAT
    )
