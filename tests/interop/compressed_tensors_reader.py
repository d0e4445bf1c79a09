"""How the compressed-tensors library reads a checkpoint: in transformers, and module by module by its own functions."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.interop.agreement import logits
from workers.checkpoint.config import read_quantization
from workers.checkpoint.layouts.layout import split_name


def load_theirs(path: Path) -> PreTrainedModel:
    """In fp32, so that nothing but the weights, and the activations where the scheme says so, is rounded."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    logits(model)  # the first forward expands all weights in place
    return model


def weight_of(layer: nn.Module) -> Tensor:
    """Of an expanded layer."""
    weight: Tensor = layer.get_parameter("weight")
    return weight.data.float()


def decompressed_weights(path: Path) -> dict[str, Tensor]:
    """Module -> its weight in fp32, for a checkpoint of one scheme.

    For asymmetric grids: transformers 5.23 refuses their packed zero points ("size mismatch"), whoever wrote them.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(read_quantization(path))
    (scheme,) = config.config_groups.values()
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path / "model.safetensors").items():
        module, rest = split_name(name)
        # scales in fp32, so that the library multiplies in fp32
        modules.setdefault(module, {})[rest] = tensor.float() if rest == "weight_scale" else tensor
    compressor = BaseCompressor.get_value_from_registry(config.format)
    return {
        module: compressor.decompress(held, scheme)["weight"]
        for module, held in modules.items()
        if "weight_scale" in held
    }
