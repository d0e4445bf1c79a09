"""How far the base's predictions move when one unit of linears is compressed alone, for each unit and bit width.

A unit is the linears of a layer that read the same numbers (in a Llama q, k and v; o; gate and up; down): readers that
fuse them want one format for all. All experts of a layer are one unit. Each layer is compressed whole at each bit
width, by GPTQ on what the base's own layers make of the calibration text; then, unit by unit, held-out windows run
through the layer with that unit's weights in place of the base's, and through the rest of the base.

With L layers, U units, B bit widths and W windows that is B compressions of each layer and U x B x W x L / 2 passes
through each. A finished layer is a line in a journal, so a killed job goes on behind it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from workers.auto.heldout import HeldoutText
from workers.checkpoint.layouts.layout import Layout
from workers.compress.activations import Activations
from workers.compress.calibrated_table import calibrated_method
from workers.compress.finished_layer import expanded, layer_targets
from workers.compress.fold_search import FoldFinder
from workers.compress.layer_inputs import LayerInputs, numbers
from workers.compress.one_layer import LayerCompression
from workers.compress.plan import CompressionPlan
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import GptqRecipe, Recipe

PHASE = "measuring sensitivity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Linears that get one bit width. modules: their names. patterns: the same as names or globs. kl: by bits."""

    modules: list[str]
    patterns: list[str]
    kl: dict[int, float]


def uniform_plan(plan: CompressionPlan, recipe: GptqRecipe) -> CompressionPlan:
    """The same linears, all by this recipe, whose grid differs from the plan's in its bits alone."""
    recipes: dict[str, Recipe] = dict.fromkeys(plan.recipes, recipe)
    schemes = {module: replace(scheme, num_bits=recipe.num_bits) for module, scheme in plan.schemes.items()}
    return replace(plan, recipes=recipes, schemes=schemes)


@dataclass(slots=True, kw_only=True)
class SensitivityJob:
    """One pass over all layers. recipes: by bits. samples: the first layer's inputs on the
    calibration text. staged: the journal.
    """

    walk: LayerWalk
    plan: CompressionPlan
    layout: Layout
    recipes: dict[int, GptqRecipe]
    samples: Activations
    heldout: HeldoutText
    staged: StagedLayers
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]

    def run(self) -> list[Unit]:
        """All units, in the order of the layers. Raises WorkerError, OSError, or what `poll` raises."""
        num_layers = len(self.walk.layers)
        if self.staged.num_finished < num_layers:
            outputs = self.heldout.base_outputs()
            windows = self.heldout.embedded("windows")
            for index in range(num_layers):
                if index >= self.staged.num_finished:
                    self.staged.save({}, {"units": self._measure(index, windows, outputs)})
                    self._tell(index + 1)
                if index + 1 < num_layers:
                    with self.walk.layer(index):
                        self.heldout.advance(index, windows)
                        self.heldout.advance(index, self.samples)
        return [unit for entry in self.staged.notes for unit in map(_read_unit, entry["note"]["units"])]

    def _measure(self, index: int, windows: Activations, outputs: Activations) -> list[dict[str, Any]]:
        """A layer's units, as JSON data. windows: its held-out inputs. outputs: the base's last hidden states."""
        linears = layer_targets(self.walk, self.plan, index)
        if not linears:
            return []
        inputs = LayerInputs(walk=self.walk, index=index, samples=self.samples, poll=self.poll)
        with self.walk.layer(index):
            groups = inputs.groups(linears)
            made = {bits: self._compress(index, inputs, linears, recipe) for bits, recipe in self.recipes.items()}
            units = units_of(inputs.name, groups)
            changed = Activations(
                self._perturbed(index, windows, units, made),
                self.heldout.folder / "units",
                self.heldout.limit_bytes,
                len(units) * len(made) * self.heldout.num_windows,
            )
        for later in range(index + 1, len(self.walk.layers)):
            with self.walk.layer(later):
                self.heldout.advance(later, changed)
        divergences = iter(self.heldout.divergences(outputs, changed))
        return [
            {"modules": modules, "patterns": patterns, "kl": {str(num_bits): next(divergences) for num_bits in made}}
            for patterns, modules in units
        ]

    def _compress(
        self, index: int, inputs: LayerInputs, linears: dict[str, nn.Linear], recipe: GptqRecipe
    ) -> dict[str, Tensor]:
        """The layer's tensors at one bit width, by stored name. The layer has the base's numbers again afterwards."""
        method = calibrated_method(recipe, self.layout.scale_dtype)
        result = LayerCompression(
            inputs=inputs,
            linears=linears,
            plan=uniform_plan(self.plan, recipe),
            main=recipe,
            layout=self.layout,
            methods={recipe: method},
            finder=FoldFinder(),
            tell=lambda *_: self.poll(),
        ).run()
        self.walk.refill(index)
        return result.tensors

    def _perturbed(
        self,
        index: int,
        windows: Activations,
        units: list[tuple[list[str], list[str]]],
        made: dict[int, dict[str, Tensor]],
    ) -> Iterator[Tensor]:
        """What the layer makes of each window: with the first unit at the first bit width, at the second, and so on."""
        linears = layer_targets(self.walk, self.plan, index)
        for _, modules in units:
            own = {module: linears[module] for module in modules}
            before = {module: linear.weight.detach().clone() for module, linear in own.items()}
            for num_bits, tensors in made.items():
                plan = uniform_plan(self.plan, self.recipes[num_bits])
                config = self.layout.quantization_config(plan.groups(), plan.ignore)
                weights, _ = expanded(own, plan, self.layout, config, tensors)
                with torch.inference_mode():
                    for module, weight in weights:
                        own[module].weight.copy_(weight)
                for hidden in windows:
                    self.poll()
                    yield self.walk.run(index, hidden.to(self.walk.device))
            with torch.inference_mode():
                for module, weight in before.items():
                    own[module].weight.copy_(weight)

    def _tell(self, done: int) -> None:
        num_layers = len(self.walk.layers)
        self.report(JobProgress(phase=PHASE, done=done, total=num_layers, layer=done - 1, num_layers=num_layers))
        self.poll()


def units_of(layer: str, groups: list[list[str]]) -> list[tuple[list[str], list[str]]]:
    """(patterns, modules) of each unit of a layer. groups: modules that read the same numbers."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for group in groups:
        for module in group:
            inside = module.removeprefix(f"{layer}.")
            number = numbers(inside)
            if number:
                pattern = f"{layer}.{inside.partition(f'{number[0]}.')[0]}*"
                patterns, modules = found.setdefault(pattern, ([pattern], []))
            else:
                patterns, modules = found.setdefault(group[0], ([], []))
                patterns.append(module)
            modules.append(module)
    return list(found.values())


def _read_unit(data: dict[str, Any]) -> Unit:
    kl = {int(num_bits): value for num_bits, value in data["kl"].items()}
    return Unit(modules=data["modules"], patterns=data["patterns"], kl=kl)
