"""Which module of a layer can take the scales of which linears: found and proven by running the layer.

A candidate's outputs are divided by factors. Modules whose inputs are then the old ones over the factors read it; with
their inputs multiplied back, and nothing else touched, the layer must give the old outputs. All factors here are powers
of two, with which fp32 numbers are multiplied without rounding: what is equal is equal to the last bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from workers.compress.folding import FoldSite, Kind
from workers.compress.layer_inputs import family, numbers, watching_inputs

# A router's inputs must be right before its experts get theirs, and a shared expert may come behind those.
_MAX_ROUNDS = 6
# A gate and an up projection, or queries, keys and values, may be stored as one linear.
_MOST_FUSED = 3
_Trial = tuple[FoldSite, Tensor]


@dataclass(slots=True)
class FoldFinder:
    """Finds the sites of each layer. Layers of one structure are searched once, and each is proven for itself."""

    _known: dict[tuple[object, ...], list[FoldSite]] = field(default_factory=dict)

    def find(
        self, layer: nn.Module, targets: Sequence[str], hidden: Tensor, run: Callable[[], Tensor]
    ) -> list[FoldSite]:
        """Sites that hold together; no linear reads two. targets: linears that want scales, by their names inside the
        layer. run: computes the layer's output for `hidden`, (1, tokens, hidden).
        """
        search = _Search(layer, targets, hidden, run)
        known = self._known.get(search.structure)
        if known is None or not search.holds(known):
            found = search.sites()
            known = self._known[search.structure] = found if search.holds(found) else []
        return known


def is_same(output: Tensor, exact: Tensor, hidden: Tensor) -> bool:
    """Whether two outputs of a layer for `hidden` differ by rounding only.

    Measured against what the layer adds: hidden states may be a thousand times larger.
    """
    added = (exact - hidden).square().mean().sqrt()
    rounding = 16 * torch.finfo(torch.float32).eps * exact.abs().max()
    return bool((output - exact).abs().max() <= 1e-3 * added + rounding)


class _Search:
    """One layer and what it computes as it is."""

    def __init__(self, layer: nn.Module, targets: Sequence[str], hidden: Tensor, run: Callable[[], Tensor]) -> None:
        self._layer = layer
        self._hidden = hidden
        self._run = run
        self._modules = {name: module for name, module in layer.named_modules() if name}
        self._readers = {name: module for name, module in self._modules.items() if _width(module)}
        self._open = [name for name in targets if name in self._readers]
        self._output, self._inputs = self._look([])
        shapes = [(name, type(module), *map(tuple, _shapes(module))) for name, module in self._modules.items()]
        self.structure = (*shapes, tuple(self._open))

    def sites(self) -> list[FoldSite]:
        """All that are found one by one, norms first."""
        found: list[FoldSite] = []
        for width, kind, members in self._candidates():
            if any(_width(self._readers[name]) == width for name in self._open):
                sites = self._try(members, kind, width)
                taken = {reader for site in sites for reader in site.readers}
                if not taken.isdisjoint(self._open):
                    self._open = [name for name in self._open if name not in taken]
                    found += sites
        return found

    def holds(self, sites: Sequence[FoldSite]) -> bool:
        """Whether factors at all sites at once leave the layer's output as it is."""
        if not sites:
            return True
        trials = []
        for number, site in enumerate(sites):
            trials.append((site, _factors(_width(self._readers[site.readers[0]]), number)))
        return is_same(self._look(trials)[0], self._output, self._hidden)

    def _candidates(self) -> Iterator[tuple[int, Kind, list[str]]]:
        """(number of outputs, kind, modules of one family); experts are tried together."""
        widths = sorted({_width(self._readers[name]) for name in self._open})
        norms: dict[tuple[str, int], list[str]] = {}
        linears: dict[tuple[str, int], list[str]] = {}
        for name, module in self._modules.items():
            if (size := _norm_width(module)) in widths:
                norms.setdefault((family(f".{name}"), size), []).append(name)
            if type(module) is nn.Linear:
                for width in widths:
                    if module.out_features in [width * times for times in range(1, _MOST_FUSED + 1)]:
                        linears.setdefault((family(f".{name}"), width), []).append(name)
        for (_, width), members in norms.items():
            yield width, "norm", members
            yield width, "offset_norm", members
        for (_, width), members in linears.items():
            yield width, "linear", members

    def _try(self, members: list[str], kind: Kind, width: int) -> list[FoldSite]:
        """The sites whose predecessors are `members`, or none."""
        factors = {name: _factors(width, number) for number, name in enumerate(members)}
        sites = {name: FoldSite(predecessor=name, kind=kind, readers=()) for name in members}
        for _ in range(_MAX_ROUNDS):
            output, inputs = self._look([(sites[name], factors[name]) for name in members])
            found = [site for site in sites.values() if site.readers]
            if found and is_same(output, self._output, self._hidden):
                return self._with_unreached(found, members)
            known = {reader for site in found for reader in site.readers}
            new = {
                reader: member
                for reader in inputs.keys() - known
                if (member := self._divided_by(reader, inputs[reader], factors)) is not None
            }
            if not new:
                return []
            for reader in sorted(new, key=list(self._readers).index):
                site = sites[new[reader]]
                sites[new[reader]] = replace(site, readers=(*site.readers, reader))
        return []

    def _divided_by(self, reader: str, inputs: Tensor, factors: dict[str, Tensor]) -> str | None:
        """The member whose factors a reader's inputs have been divided by."""
        exact = self._inputs.get(reader)
        if exact is None or exact.shape != inputs.shape or not exact.any():
            return None
        tolerance = 1e-4 * exact.abs().max()
        # The channels' own factors tell which member it may be; a mixture has hundreds.
        own = (exact * inputs).sum(dim=0) / inputs.square().sum(dim=0)
        for member, divisors in factors.items():
            if len(divisors) == len(own) and not ((own - divisors.to(own.device)).abs() > 0.1 * own.abs()).any():
                difference = inputs * divisors.to(inputs.device) - exact
                return member if bool(difference.abs().max() <= tolerance) else None
        return None

    def _with_unreached(self, sites: list[FoldSite], members: list[str]) -> list[FoldSite]:
        """The sites with the experts that no token of the sample has reached: they read what their like read."""
        families = {(family(f".{reader}"), _width(self._readers[reader])) for site in sites for reader in site.readers}
        unreached = [
            name
            for name, module in self._readers.items()
            if name not in self._inputs and (family(f".{name}"), _width(module)) in families
        ]
        if sites[0].kind != "linear":
            return [replace(site, readers=(*site.readers, *unreached)) for site in sites]
        # An expert's own linear takes the factors of its own: the two with the same number.
        pairs = [(member, name) for member in members for name in unreached if numbers(member) == numbers(name)]
        return sites + [replace(sites[0], predecessor=member, readers=(name,)) for member, name in pairs]

    def _look(self, trials: Sequence[_Trial]) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's output, and the readers' first inputs before they are multiplied back, (tokens, K) each."""
        inputs: dict[str, Tensor] = {}

        def note(name: str, values: Tensor) -> None:
            width = _width(self._readers[name])
            if name not in inputs and values.shape[-1] == width:
                inputs[name] = values.reshape(-1, width)

        with watching_inputs(self._readers, note), ExitStack() as changes:
            for site, factors in trials:
                changes.enter_context(_divided(self._layer, site, factors.to(self._hidden.device)))
            return self._run(), inputs


@contextmanager
def _divided(layer: nn.Module, site: FoldSite, factors: Tensor) -> Iterator[None]:
    """For a while the predecessor's outputs are divided by factors and the readers' columns multiplied.

    Of plain linears only the activations are, which is the same and needs no copy of their weights.
    """
    predecessor = layer.get_submodule(site.predecessor)
    with ExitStack() as undo:
        if site.kind == "linear":
            handle = predecessor.register_forward_hook(lambda _, args, output: _divide_last(output, factors))
            undo.callback(handle.remove)
        else:
            undo.enter_context(_kept(predecessor))
            with torch.no_grad():
                predecessor.get_parameter("weight").add_(site.offset).div_(factors).sub_(site.offset)
                if getattr(predecessor, "bias", None) is not None:
                    predecessor.get_parameter("bias").div_(factors)
        for reader in site.readers:
            module = layer.get_submodule(reader)
            if type(module) is nn.Linear:
                handle = module.register_forward_pre_hook(lambda _, args: (args[0] * factors, *args[1:]))
                undo.callback(handle.remove)
            else:
                undo.enter_context(_kept(module))
                with torch.no_grad():
                    module.get_parameter("weight").mul_(factors)
        yield


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Put a module's own parameters back at the end, from copies."""
    copies = {name: parameter.clone() for name, parameter in module.named_parameters(recurse=False)}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(copies[name])


def _divide_last(output: Tensor, factors: Tensor) -> Tensor:
    divided = output.clone()
    divided[..., -len(factors) :] /= factors
    return divided


def _factors(width: int, number: int) -> Tensor:
    """Random powers of two, none of them 1."""
    chance = torch.Generator().manual_seed(number)
    return torch.tensor([0.25, 0.5, 2.0, 4.0])[torch.randint(4, (width,), generator=chance)]


def _width(module: nn.Module) -> int:
    """Columns of a module's weight matrix; 0 for one that has none of its own."""
    weight = module._parameters.get("weight")
    return int(weight.shape[1]) if weight is not None and weight.dim() == 2 else 0


def _norm_width(module: nn.Module) -> int:
    """Channels of a module whose parameters are a vector `weight` and perhaps a `bias` like it; 0 for any other."""
    parameters = {name: held for name, held in module._parameters.items() if held is not None}
    weight = parameters.get("weight")
    if weight is None or parameters.keys() - {"weight", "bias"}:
        return 0
    return len(weight) if all(held.dim() == 1 and len(held) == len(weight) for held in parameters.values()) else 0


def _shapes(module: nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in module.parameters(recurse=False)]
