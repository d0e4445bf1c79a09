"""Putting compressed layers in the place of a model's linears, by name."""

from collections.abc import Mapping

import torch
from torch import nn

from workers.formats.linear import Format, QuantizedLinear, TensorLayout
from workers.protocol.errors import WorkerError, WorkerErrorCode


def swap_linears(model: nn.Module, format: Format, stored: Mapping[str, Mapping[str, TensorLayout]]) -> None:
    """Replace each linear named in `stored` (module name -> its stored tensors) by an empty layer of `format`.

    Raises WorkerError (variant_corrupt) if a name is no linear of the model or its stored weight has another shape.
    """
    modules = dict(model.named_modules())
    for name, tensors in stored.items():
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise WorkerError(
                WorkerErrorCode.VARIANT_CORRUPT, f"{name} is compressed in the checkpoint and no linear of the model"
            )
        layer = format.empty_linear(linear, tensors)
        if (layer.out_features, layer.in_features) != (linear.out_features, linear.in_features):
            raise WorkerError(
                WorkerErrorCode.VARIANT_CORRUPT,
                f"{name} is stored as {layer.out_features} x {layer.in_features}, the model has "
                f"{linear.out_features} x {linear.in_features}",
            )
        layer.eval()
        model.set_submodule(name, layer)


def product_dtype(model: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The shortest dtype that the products of a model round to. dtype: of its activations.

    Two correct computations of an fp32 model whose linears round to bf16 agree as two of a bf16 model do, not better.
    """
    dtypes = {dtype, *(layer.product_dtype for layer in quantized_linears(model).values())}
    return max(dtypes, key=lambda candidate: torch.finfo(candidate).eps)


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Name -> layer of every compressed linear of a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
