"""How transformers' loader learns of slimserve's compressed layers: a quantizer registered under its own name.

Before weights are read, each compressed linear gives way to an empty place, so that the loader neither makes memory for
it nor misses its weight. The places are filled afterwards, one by one (checkpoint/load.py).
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from workers.checkpoint.stored_names import StoredNames, split_stored_experts
from workers.protocol.errors import WorkerError, WorkerErrorCode

_NAME = "slimserve"


class VacantLinear(nn.Module):
    """The place of a compressed linear that is not read yet. It keeps the linear's bias, which the loader fills.

    weight: no parameter and without memory, so nothing misses it; for initializers that write to the weights of their
    children whether these are loaded or not (mamba's and gpt_bigcode's do).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.weight = torch.empty(linear.weight.shape, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """Never called: a model is used when all places are filled."""
        raise RuntimeError("a compressed linear was called before it was read")


class QuantizedLayers(QuantizationConfigMixin):
    """The weights of a checkpoint by their stored names: compressed ones, called `<module>.weight`, and all others.

    names: which modules they are, known once the model has been prepared.
    """

    def __init__(self, compressed: Iterable[str], plain: Iterable[str]) -> None:
        _register()
        self.quant_method = cast(QuantizationMethod, _NAME)
        self.compressed = tuple(compressed)
        self.plain = tuple(plain)
        self.names: StoredNames | None = None


class SwapQuantizer(HfQuantizer):
    """Vacates the places of compressed layers, and of all experts beside them, before other weights are loaded."""

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        layers = self.quantization_config
        assert isinstance(layers, QuantizedLayers)
        names = layers.names = split_stored_experts(model, [*layers.compressed, *layers.plain], layers.compressed)
        experts = [stored for own in names.experts.values() for stored in own]
        for stored in dict.fromkeys([*layers.compressed, *experts]):
            linear = model.get_submodule(names.modules[stored]) if stored in names.modules else None
            if not isinstance(linear, nn.Linear):
                raise WorkerError(
                    WorkerErrorCode.VARIANT_CORRUPT,
                    f"{stored.removesuffix('.weight')} is compressed in the checkpoint and no linear of the model",
                )
            model.set_submodule(names.modules[stored], VacantLinear(linear))
        # Experts that are not compressed are given their weights afterwards; the loader need not miss their places.
        known = model._keys_to_ignore_on_load_unexpected or ()
        model._keys_to_ignore_on_load_unexpected = {*known, *(rf"^{re.escape(path)}\." for path in names.experts)}

    def is_serializable(self) -> bool:
        """slimserve writes checkpoints itself, tensor by tensor."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Never: there are no gradients."""
        return False


@functools.cache
def _register() -> None:
    register_quantization_config(_NAME)(QuantizedLayers)
    register_quantizer(_NAME)(SwapQuantizer)
