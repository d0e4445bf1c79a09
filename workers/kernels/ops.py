"""The schemas of slimserve's ops, and which implementation runs on which device.

`import workers.kernels.ops` makes `torch.ops.slimserve.*` callable. A device without an entry runs the definition.
"""

import torch
from torch import Tensor

from workers.kernels import cpu, cuda, reference

_NAME = "slimserve::int8_linear"

torch.library.define(_NAME, "(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
torch.library.impl(_NAME, "CompositeExplicitAutograd")(reference.int8_linear)
torch.library.impl(_NAME, "CPU")(cpu.int8_linear)
torch.library.impl(_NAME, "CUDA")(cuda.int8_linear)


def _int8_linear_shape(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


torch.library.register_fake(_NAME, _int8_linear_shape)


def int8_product_dtype(device: torch.device) -> torch.dtype:
    """The shortest dtype that `int8_linear` rounds activations to on this device, whatever theirs is."""
    return torch.bfloat16 if device.type == "cpu" and cpu.packed_op_wins() else torch.float32


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """y = x (q * s)^T + b on x's device; `reference.int8_linear` is the definition."""
    result: Tensor = torch.ops.slimserve.int8_linear(x, weight, scale, bias)
    return result
