"""Whether two loaders of one checkpoint hold the same weights and compute the same logits."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.checkpoint.load import load_model
from workers.formats.swap import quantized_linears

IDS = torch.arange(3, 60)[None]

# Bounds of weights, of a layer's largest. A zero point read off by one moves weights by a step of the grid: 2**-3 of
# the largest one with 4 bits, 2**-7 with 8.
EXACT = 0.0
# the library multiplies its codes and scales in fp16
FP16 = 2**-10
# slimserve's grids of 2, 3 and 4 bits hold bf16 scales on the CPU; their products may be rounded to bf16 again
BF16 = 2**-7
# Of logits, as root mean square, of their deviation: 2**-8 for the weights, inputs and outputs of 7 linears one after
# the other in each of 2 layers, on either side, grow as a random walk does: 2**-8 * (3 * 7 * 2 * 2) ** 0.5 = 0.036.
# Reading anything wrongly gives more than rounding to 4 bits does, 0.15 to 0.25 on these models.
LOGITS = 2**-5
# Where both sides round activations to E4M3, by scales of other extents: by up to 2**-4 each, 2**-4 / 3**0.5 as root
# mean square, 2**0.5 times that between the two, and 2 layers as above.
E4M3_LOGITS = 2**-3


def load_ours(path: Path) -> nn.Module:
    """The checkpoint as slimserve loads it, in fp32 on the CPU."""
    return load_model(path, dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None).model


def logits(model: nn.Module) -> Tensor:
    """(tokens, vocabulary), fp32."""
    with torch.inference_mode():
        result: Tensor = model(IDS).logits[0].float()
    return result


def multiplied_weight(layer: nn.Module) -> Tensor:
    """(out_features, in_features), fp32: what a linear without bias answers to each unit vector, so that what its
    kernel really does is seen, whatever it packs and wherever it unpacks. Right where activations are not rounded.
    """
    with torch.inference_mode():
        result: Tensor = layer(torch.eye(int(layer.in_features)))  # type: ignore[arg-type]
    return result.float().T


def require_same_weights(ours: nn.Module, theirs: dict[str, Tensor], bound: float) -> None:
    """theirs: the weight of every module that must be compressed, by name. Fail unless ours are equal up to `bound`."""
    layers = quantized_linears(ours)
    assert sorted(layers) == sorted(theirs)
    for name, expected in theirs.items():
        error = float((layers[name].dequantize() - expected).abs().max() / expected.abs().max())
        assert error <= bound, f"{name}: weights differ by {error:.5f} of the largest"


def require_agreement(
    ours: nn.Module,
    theirs: nn.Module,
    num_layers: int,
    weight_of: Callable[[nn.Module], Tensor],
    *,
    weights: float,
    logits_bound: float = LOGITS,
) -> None:
    """Fail unless `num_layers` linears are compressed here, and their weights and the logits agree."""
    names = list(quantized_linears(ours))
    assert len(names) == num_layers
    # first: a layer may repack its weight for its kernel in its first forward
    require_same_weights(ours, {name: weight_of(theirs.get_submodule(name)) for name in names}, weights)
    expected, result = logits(theirs), logits(ours)
    error = float((result - expected).square().mean().sqrt() / expected.std())
    assert error <= logits_bound, f"logits differ by {error:.4f} of their deviation"
