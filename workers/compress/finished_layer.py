"""A decoder layer as its variant will compute it: read back from the tensors that are written, weights expanded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.checkpoint.layouts.layout import Layout, split_name
from workers.compress.plan import CompressionPlan
from workers.compress.walk import LayerWalk


def layer_targets(walk: LayerWalk, plan: CompressionPlan, index: int) -> dict[str, nn.Linear]:
    """A layer's linears that are compressed, by module name."""
    prefix = f"{walk.path}.{index}."
    found: dict[str, nn.Linear] = {}
    for module in plan.targets.values():
        if module.startswith(prefix):
            linear = walk.model.get_submodule(module)
            assert isinstance(linear, nn.Linear), "planned on the same skeleton"
            found[module] = linear
    return found


def expanded(
    linears: Mapping[str, nn.Linear],
    plan: CompressionPlan,
    layout: Layout,
    quantization_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> tuple[Iterator[tuple[str, Tensor]], dict[str, Tensor]]:
    """The weights, by module and one at a time, that a layer's compressed tensors stand for; and its tensors that are
    not compressed.

    linears: the compressed ones by module name. quantization_config: as config.json says. tensors: by stored name.
    """
    modules = {plan.stored_name(module): module for module in linears}
    compressed: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored, rest = split_name(name)
        if stored in modules and rest != "bias":
            compressed.setdefault(stored, {})[rest] = tensor
        else:
            plain[name] = tensor

    def weights() -> Iterator[tuple[str, Tensor]]:
        for stored, module in modules.items():
            linear = linears[module]
            shape = (linear.out_features, linear.in_features)
            yield module, layout.decode(stored, compressed[stored], quantization_config, *shape).dequantize()

    return weights(), plain


@contextmanager
def finished_layer(
    walk: LayerWalk,
    index: int,
    plan: CompressionPlan,
    layout: Layout,
    quantization_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> Iterator[None]:
    """Layer `index` of the walk with memory and with what these tensors stand for. Arguments: see `expanded`."""
    linears = layer_targets(walk, plan, index)
    weights, plain = expanded(linears, plan, layout, quantization_config, tensors)
    with walk.layer(index, plain), torch.inference_mode():
        for module, weight in weights:
            linears[module].weight.copy_(weight)
        yield
