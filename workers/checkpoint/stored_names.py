"""Which linear of a model a stored weight is, by transformers' own rules of renaming and fusing.

Checkpoints name weights as their authors did, experts one by one; transformers renames them at load and fuses experts.
Its rules are asked about names here, before anything is read. No table of architectures is kept.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from workers.formats.experts import fused_experts, fused_parts, reason_to_keep_fused, split_experts

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNames:
    """modules: stored weight -> module that multiplies with it as it is stored, experts as they are named when split.

    destinations: every stored tensor -> see `LoadRules.destination`.
    experts: fused module that can be split -> its part of `modules`. fused: fused module that cannot be -> reason.
    unfusable: those of `experts` whose names tell transformers nothing: it cannot load them unless they are split.
    """

    modules: dict[str, str]
    experts: dict[str, dict[str, str]]
    fused: dict[str, str]
    unfusable: frozenset[str]
    destinations: dict[str, tuple[str, str | None]]


def stored_names(model: PreTrainedModel, names: Iterable[str]) -> StoredNames:
    """Find where transformers would load each stored tensor. model: with fused experts, on any device.

    names: of all tensors in the files. For a compressed weight `a.b.weight_packed`, pass `a.b.weight`, as it would be
    called if it were not.
    """
    rules = LoadRules(model)
    found = _Destinations(rules, names)
    modules = found.modules_as_stored()
    experts: dict[str, dict[str, str]] = {}
    fused: dict[str, str] = {}
    for path, module in fused_experts(model).items():
        own = reason_to_keep_fused(module) or found.expert_modules(path, module)
        if isinstance(own, str):
            fused[path] = own
        else:
            experts[path] = own
            modules |= own
    return StoredNames(
        modules=modules,
        experts=experts,
        fused=fused,
        unfusable=frozenset(path for path in experts if found.is_split_already(path)),
        destinations=found.destinations,
    )


def split_stored_experts(
    model: PreTrainedModel, names: Iterable[str], compressed: Collection[str] | None = None
) -> StoredNames:
    """Split experts that are stored one by one: all, or where one of the weights in `compressed` is theirs.

    names: as for `stored_names`. compressed: some of them. Experts that could not be loaded otherwise are always split.
    Returns the names of the model as it is then; its `experts` are those that are split.
    """
    found = stored_names(model, names)
    split = {
        path: own
        for path, own in found.experts.items()
        if compressed is None or path in found.unfusable or not own.keys().isdisjoint(compressed)
    }
    whole = {stored for path, own in found.experts.items() if path not in split for stored in own}
    split_experts(model, split)
    modules = {stored: module for stored, module in found.modules.items() if stored not in whole}
    return replace(found, modules=modules, experts=split)


class LoadRules:
    """transformers' conversion of one model's checkpoints, asked about names only.

    expert_weights: what the model will have in the place of fused parameters when its experts are split. parameters:
    those and all that it has now.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings: list[Any] = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
        self._converters: list[Any] = [rule for rule in mapping if isinstance(rule, WeightConverter)]
        self._by_pattern: dict[str, Any] = {
            pattern: converter for converter in self._converters for pattern in converter.source_patterns
        }
        self._prefix = model.base_model_prefix
        self.expert_weights = {name for path, experts in fused_experts(model).items() for name in _split(path, experts)}
        self.parameters: dict[str, Any] = {**dict.fromkeys(self.expert_weights, True), **model.state_dict()}

    def destination(self, name: str) -> tuple[str, str | None]:
        """The parameter that a stored tensor goes into, and the pattern of the conversion on its way, if there is one.

        As `convert_and_load_state_dict_in_model` does it: a name that the model has needs no renaming.
        """
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.parameters)
        if renamed not in self.parameters and name in self.parameters:
            renamed, pattern = rename_source_key(name, [], [], self._prefix, self.parameters)
        return renamed, pattern

    def stacked_parts(self, pattern: str, parts: tuple[str, ...]) -> dict[str, str] | None:
        """Part -> pattern of its matrices, if the conversion stacks matrices of experts and does nothing else."""
        converter = self._by_pattern[pattern]
        steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
        expected = [(MergeModulelist, 0), (Concatenate, 1)][: len(parts)]
        if steps != expected or len(converter.target_patterns) != 1 or len(converter.source_patterns) != len(parts):
            return None
        return dict(zip(parts, converter.source_patterns, strict=True))


class _Destinations:
    """All stored tensors and where they go. as_stored: parameter -> name. stacks: fused parameter -> pattern -> names,
    in the order in which transformers stacks them.
    """

    def __init__(self, rules: LoadRules, names: Iterable[str]) -> None:
        self.rules = rules
        self.as_stored: dict[str, str] = {}
        self.stacks: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.destinations = {name: rules.destination(name) for name in names}
        for name in sorted(self.destinations, key=dot_natural_key):
            parameter, pattern = self.destinations[name]
            if pattern is not None:
                self.stacks[parameter][pattern].append(name)
            elif parameter in rules.parameters:
                self.as_stored[parameter] = name

    def modules_as_stored(self) -> dict[str, str]:
        """Stored name -> module, of the weights that transformers neither fuses nor changes."""
        return {
            name: parameter.removesuffix(_WEIGHT)
            for parameter, name in self.as_stored.items()
            if parameter.endswith(_WEIGHT) and parameter not in self.rules.expert_weights
        }

    def is_split_already(self, path: str) -> bool:
        """Whether the files name the experts of a module as we do, by no rule of transformers."""
        return any(name.startswith(f"{path}.") for name in self.as_stored.keys() & self.rules.expert_weights)

    def expert_modules(self, path: str, experts: nn.Module) -> dict[str, str] | str:
        """Stored name -> linear, of all experts of one module, or why it cannot be split."""
        modules: dict[str, str] = {}
        num_experts = _num_experts(experts)
        for parameter, parts in fused_parts(experts).items():
            fused = f"{path}.{parameter}"
            if fused in self.as_stored:
                return "the checkpoint stores its experts as one tensor"
            matrices = self._stacked(fused, parts) if fused in self.stacks else self._direct(path, parts, num_experts)
            if matrices is None:
                return "its experts are stored in another form than one matrix each"
            for part, stored in matrices.items():
                if len(stored) != num_experts:
                    return f"the checkpoint has {part} of {len(stored)} experts, the model has {num_experts}"
                modules |= {name: f"{path}.{number}.{part}" for number, name in enumerate(stored)}
        return modules

    def _stacked(self, fused: str, parts: tuple[str, ...]) -> dict[str, list[str]] | None:
        by_pattern = self.stacks[fused]
        patterns = self.rules.stacked_parts(next(iter(by_pattern)), parts)
        return None if patterns is None else {part: by_pattern[pattern] for part, pattern in patterns.items()}

    def _direct(self, path: str, parts: tuple[str, ...], num_experts: int) -> dict[str, list[str]]:
        """Of files whose names are those of split experts already."""
        places = {part: [f"{path}.{number}.{part}{_WEIGHT}" for number in range(num_experts)] for part in parts}
        return {part: [self.as_stored[name] for name in own if name in self.as_stored] for part, own in places.items()}


def _split(path: str, experts: nn.Module) -> list[str]:
    """The weights in the place of a fused module's parameters; none if it cannot be split."""
    if reason_to_keep_fused(experts) is not None:
        return []
    parts = [part for own in fused_parts(experts).values() for part in own]
    return [f"{path}.{number}.{part}{_WEIGHT}" for number in range(_num_experts(experts)) for part in parts]


def _num_experts(experts: nn.Module) -> int:
    return experts.get_parameter("down_proj").shape[0]
