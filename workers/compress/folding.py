"""Scales in front of linears, taken over by what comes before: the layer computes what it did, in other numbers.

A norm or a linear divides its outputs by the factors, everything that reads them multiplies its input columns. What may
take them is found by trying (fold_search.py), not by a table of architectures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["norm", "offset_norm", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSite:
    """What takes factors, and all that reads its outputs; names are the modules' inside their layer.

    kind: "norm" multiplies by its weight (and adds its bias), "offset_norm" by 1 + weight, as Gemma's, "linear" is one
    whose last rows are the outputs.
    """

    predecessor: str
    kind: Kind
    readers: tuple[str, ...]

    @property
    def offset(self) -> float:
        """What a norm adds to its weight."""
        return 1.0 if self.kind == "offset_norm" else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStorage:
    """How the parameters of a layer are stored. dtype_of: a parameter's dtype in the files, by its name inside the
    layer; None if it is not stored by itself. targets: linears whose weights are rounded after the fold.
    """

    dtype_of: Callable[[str], torch.dtype | None]
    targets: frozenset[str]

    def changed(self, layer: nn.Module, site: FoldSite) -> list[str]:
        """The parameters that a fold changes and that are stored as they are then."""
        names = [f"{reader}.weight" for reader in site.readers if reader not in self.targets]
        if site.predecessor not in self.targets:
            names.append(f"{site.predecessor}.weight")
        if getattr(layer.get_submodule(site.predecessor), "bias", None) is not None:
            names.append(f"{site.predecessor}.bias")
        return names

    def has_room(self, layer: nn.Module, site: FoldSite) -> bool:
        """Whether every changed parameter has a place in the files."""
        return all(self.dtype_of(name) is not None for name in self.changed(layer, site))


def fold(layer: nn.Module, site: FoldSite, factors: Tensor, storage: LayerStorage) -> Tensor:
    """Divide the predecessor's outputs by factors and multiply the readers' columns. Returns the factors used, (K,).

    factors: (K,), fp32, positive. A norm's weight is rounded to the dtype of the files at once, and the factors are
    what its rounded weight stands for: so that rounding costs nothing.
    """
    predecessor = layer.get_submodule(site.predecessor)
    weight, bias = predecessor.weight, getattr(predecessor, "bias", None)
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        if site.kind == "linear":
            _last(weight, factors).div_(factors[:, None])
        else:
            dtype = storage.dtype_of(f"{site.predecessor}.weight") or torch.float32
            factors = _divide_norm(weight, factors, site.offset, dtype)
        if isinstance(bias, Tensor):
            _last(bias, factors).div_(factors)
        for reader in site.readers:
            columns = layer.get_submodule(reader).weight
            assert isinstance(columns, Tensor)
            columns.mul_(factors)
    return factors


def round_changed(layer: nn.Module, site: FoldSite, storage: LayerStorage) -> dict[str, Tensor]:
    """Round what a fold has changed to the files' dtypes, and return it by its name inside the layer.

    Biases and uncompressed weights, a router's for instance, lose what they lost when the base was stored, 2**-9 of
    each number in bf16. Powers of two would lose nothing, and cost AWQ more: a tenth of the KL divergence at 4 bits.
    """
    rounded: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in storage.changed(layer, site):
            parameter = layer.get_parameter(name)
            rounded[name] = parameter.detach().to(storage.dtype_of(name))
            parameter.copy_(rounded[name])
    return rounded


def _divide_norm(weight: Tensor, factors: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    """Divide a norm's weight by factors, rounded to dtype. Returns what it has been divided by exactly.

    A channel whose new weight would vanish or overflow keeps its own.
    """
    before = weight.double() + offset
    stored = (before / factors.double() - offset).to(dtype).double()
    exact = before / (stored + offset)
    is_usable = torch.isfinite(exact) & (exact > 0)
    is_silent = before == 0
    weight.copy_(torch.where(is_usable | is_silent, stored, weight.double()))
    ones = torch.ones_like(exact)
    # A silent channel is 0 whatever it is divided by.
    return torch.where(is_silent, factors.double(), torch.where(is_usable, exact, ones)).float()


def _last(parameter: Tensor, factors: Tensor) -> Tensor:
    """The rows that the factors belong to."""
    return parameter[-len(factors) :]
