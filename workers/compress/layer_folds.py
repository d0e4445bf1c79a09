"""The scales of one layer: which linears share them, what they are, and what has taken their inverse."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from workers.compress.fold_search import FoldFinder, is_same
from workers.compress.folding import FoldSite, LayerStorage, fold, round_changed
from workers.compress.layer_inputs import LayerInputs
from workers.compress.method import CalibratedMethod, Observer
from workers.compress.plan import CompressionPlan
from workers.protocol.recipes import Recipe

_NOTHING = "nothing before it can take its scales"
_NO_GAIN = "no scales lower the error of its outputs"
_TOO_FEW = "too few tokens to choose scales by"
_NOT_THE_SAME = "with scales the layer did not compute the same"


@dataclass(slots=True)
class FoldedScales:
    """factors: module -> what its columns were multiplied by, (K,), fp32. tensors: other parameters that were changed,
    by stored name. folds: module that took the inverse -> all linears that read it. unfolded: module that got no scales
    -> why.
    """

    factors: dict[str, Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    folds: dict[str, list[str]] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    site: FoldSite
    factors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFolds:
    """Folds the scales of the layer that `inputs` runs. linears: its targets, with memory."""

    inputs: LayerInputs
    plan: CompressionPlan
    main: Recipe
    finder: FoldFinder
    methods: dict[Recipe, CalibratedMethod | None]
    linears: dict[str, nn.Linear]

    def fold(
        self,
        wanting: Mapping[str, str],
        observers: Mapping[str, Observer],
        is_enough: Callable[[int], bool],
    ) -> FoldedScales:
        """Observe the layer as it is, choose all scales, fold them. wanting: module -> the one whose observer sees its
        inputs; those observers are filled. The layer is left as it was if it would not compute the same.
        """
        sites = self._sites(list(wanting))
        shared = {site.predecessor: self._shared_observer(site, wanting) for site in sites}
        common = {f"{self.inputs.name}.{name}": held for name, held in shared.items() if held is not None}
        self.inputs.observe(observers, common)
        result = FoldedScales(unfolded=dict.fromkeys(wanting, _NOTHING))
        chosen: list[_Chosen] = []
        for site in sites:
            self.inputs.poll()
            readers = self._wanting(site, wanting)
            observed = shared[site.predecessor] or observers[wanting[readers[0]]]
            factors = self._choose(readers, observed) if is_enough(observed.num_tokens) else None
            if factors is not None:
                chosen.append(_Chosen(site=site, factors=factors))
                continue
            reason = _NO_GAIN if is_enough(observed.num_tokens) else _TOO_FEW
            result.unfolded |= dict.fromkeys(self._wanting(site, wanting, every=True), reason)
        if chosen and not self._apply(chosen, result):
            self.inputs.walk.refill(self.inputs.index)
            changed = {module: _NOT_THE_SAME for module in wanting if module in result.factors}
            return FoldedScales(unfolded=result.unfolded | changed)
        result.unfolded = {module: why for module, why in result.unfolded.items() if module not in result.factors}
        return result

    def _sites(self, wanting: list[str]) -> list[FoldSite]:
        """Those with room for what they change, that the method of their linears may use."""
        targets = [self._inside(module) for module in wanting]
        with torch.no_grad():
            sites = self.finder.find(self._layer, targets, self.inputs.first, self.inputs.run_first)
        storage = self._storage()
        return [site for site in sites if self._may_use(site, wanting) and storage.has_room(self._layer, site)]

    def _may_use(self, site: FoldSite, wanting: list[str]) -> bool:
        method = self.methods[self.plan.recipes[self._wanting(site, wanting)[0]]]
        return method is not None and (method.folds_into == "any" or site.kind != "linear")

    def _wanting(self, site: FoldSite, wanting: Iterable[str], *, every: bool = False) -> list[str]:
        """Linears of a site that want scales: those of one recipe, the main one if some have it, or every one."""
        readers = {f"{self.inputs.name}.{reader}" for reader in site.readers}
        found = [module for module in wanting if module in readers]
        recipes = [self.plan.recipes[module] for module in found]
        chosen = self.main if self.main in recipes else recipes[0]
        return [module for module, recipe in zip(found, recipes, strict=True) if every or recipe == chosen]

    def _shared_observer(self, site: FoldSite, wanting: Mapping[str, str]) -> Observer | None:
        """What remembers a norm's outputs, where its linears do not all see the same ones, as experts do."""
        readers = self._wanting(site, wanting)
        if site.kind == "linear" or len({wanting[module] for module in readers}) == 1:
            return None
        method = self.methods[self.plan.recipes[readers[0]]]
        assert method is not None
        return method.observer(self.linears[readers[0]].in_features)

    def _choose(self, readers: list[str], observed: Observer) -> Tensor | None:
        method = self.methods[self.plan.recipes[readers[0]]]
        assert method is not None
        return method.scales([self.linears[module].weight for module in readers], observed)

    def _apply(self, chosen: list[_Chosen], result: FoldedScales) -> bool:
        """Fold all; False if the layer then computes something else."""
        layer, storage = self._layer, self._storage()
        exact = self.inputs.run_first()
        for one in chosen:
            factors = fold(layer, one.site, one.factors, storage)
            readers = [f"{self.inputs.name}.{reader}" for reader in one.site.readers]
            result.factors |= dict.fromkeys(readers, factors)
            result.folds.setdefault(f"{self.inputs.name}.{one.site.predecessor}", []).extend(readers)
        if not is_same(self.inputs.run_first(), exact, self.inputs.first):
            return False
        for one in chosen:
            for name, values in round_changed(layer, one.site, storage).items():
                stored = self.inputs.walk.stored_as(f"{self.inputs.name}.{name}")
                assert stored is not None, "has_room"
                result.tensors[stored[0]] = values.cpu()
        return True

    @property
    def _layer(self) -> nn.Module:
        layer: nn.Module = self.inputs.walk.layers[self.inputs.index]
        return layer

    def _inside(self, module: str) -> str:
        return module.removeprefix(f"{self.inputs.name}.")

    def _storage(self) -> LayerStorage:
        def dtype_of(parameter: str) -> torch.dtype | None:
            stored = self.inputs.walk.stored_as(f"{self.inputs.name}.{parameter}")
            return None if stored is None else stored[1]

        return LayerStorage(dtype_of=dtype_of, targets=frozenset(map(self._inside, self.linears)))
