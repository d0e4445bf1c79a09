"""What a model with compressed layers in it is like."""

import torch
from torch import nn

from workers.formats.linear import QuantizedLinear


def product_dtype(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The shortest dtype that the products of a model round to. dtype: of its activations.

    Two correct computations of an fp32 model whose linears round to bf16 agree as two of a bf16 model do, not better.
    """
    dtypes = {dtype, *(layer.product_dtype for layer in quantized_linears(model).values())}
    return max(dtypes, key=lambda candidate: torch.finfo(candidate).eps)


def kernels(model: nn.Module) -> str:
    """The products that a model's compressed layers make on their device, `int4pack` or `emulated`; "" without any."""
    return ", ".join(sorted({layer.kernel for layer in quantized_linears(model).values()}))


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Name -> layer of every compressed linear of a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
