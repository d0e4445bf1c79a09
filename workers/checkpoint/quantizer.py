"""How transformers' loader learns of slimserve's compressed layers: a quantizer registered under its own name."""

import functools
from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from workers.formats.linear import Format, TensorLayout
from workers.formats.swap import swap_linears
from workers.protocol.errors import WorkerError, WorkerErrorCode

_NAME = "slimserve"


class QuantizedLayers(QuantizationConfigMixin):
    """Which modules of a checkpoint are compressed, and how: module name -> its stored tensors."""

    def __init__(self, format: Format, stored: Mapping[str, Mapping[str, TensorLayout]]) -> None:
        _register()
        self.quant_method = cast(QuantizationMethod, _NAME)
        self.format = format
        self.stored = stored


class SwapQuantizer(HfQuantizer):
    """Swaps compressed layers into the model before its weights are loaded; the loader then fills them as they are."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        layers = self.quantization_config
        assert isinstance(layers, QuantizedLayers)
        swap_linears(model, layers.format, {module_name(model, name): kept for name, kept in layers.stored.items()})

    def is_serializable(self) -> bool:
        """slimserve writes checkpoints itself, tensor by tensor."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Never: there are no gradients."""
        return False


def module_name(model: PreTrainedModel, stored_name: str) -> str:
    """The module that a checkpoint's name means: checkpoints may have one decoder prefix less, or one more.

    Raises WorkerError (variant_corrupt) if there is none.
    """
    prefix = model.base_model_prefix + "."
    for name in (stored_name, prefix + stored_name, stored_name.removeprefix(prefix)):
        if _has_module(model, name):
            return name
    raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"the model has no module for the stored weight {stored_name!r}")


def _has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


@functools.cache
def _register() -> None:
    register_quantization_config(_NAME)(QuantizedLayers)
    register_quantizer(_NAME)(SwapQuantizer)
