"""Compression of a model larger than memory by methods that look at activations: one decoder layer at a time.

Each layer sees what the compressed layers before it make of the calibration samples. A finished layer is read back from
disk before the samples run through it, so an interrupted job that goes on computes with the same numbers.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from workers.checkpoint.layouts.layout import Layout
from workers.compress.activations import Activations
from workers.compress.calibrated_table import calibrated_method
from workers.compress.finished_layer import finished_layer, layer_targets
from workers.compress.fold_search import FoldFinder
from workers.compress.layer_inputs import LayerInputs
from workers.compress.method import CalibratedMethod, Rounded
from workers.compress.one_layer import LayerCompression
from workers.compress.plan import CompressionPlan
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import Recipe


@dataclass(slots=True, kw_only=True)
class LayerJob:
    """One walk over all layers. main: the recipe of what no override matches. quantization_config: as the variant's
    config.json will say. `poll` raises to cancel; it is called between modules and between samples.
    """

    walk: LayerWalk
    plan: CompressionPlan
    main: Recipe
    layout: Layout
    quantization_config: dict[str, Any]
    staged: StagedLayers
    activations: Activations
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]
    started_at_s: float = field(default_factory=time.monotonic)
    _methods: dict[Recipe, CalibratedMethod | None] = field(default_factory=dict)
    _finder: FoldFinder = field(default_factory=FoldFinder)
    _num_left: int = 0
    _num_made: int = 0

    def run(self) -> None:
        """Compress every layer that is not finished yet. Raises WorkerError, OSError, or what `poll` raises."""
        self._methods = {
            recipe: calibrated_method(recipe, self.layout.scale_dtype)
            for recipe in {self.main, *self.plan.recipes.values()}
        }
        num_layers = len(self.walk.layers)
        self._num_left = sum(len(self._targets(index)) for index in range(self.staged.num_finished, num_layers))
        for index in range(num_layers):
            if index >= self.staged.num_finished:
                self._compress(index)
            if index + 1 < num_layers:
                self._advance(index)

    def _compress(self, index: int) -> None:
        """Make one layer and keep it."""
        inputs = LayerInputs(walk=self.walk, index=index, samples=self.activations, poll=self.poll)
        with self.walk.layer(index):
            result = LayerCompression(
                inputs=inputs,
                linears=self._targets(index),
                plan=self.plan,
                main=self.main,
                layout=self.layout,
                methods=self._methods,
                finder=self._finder,
                tell=lambda module, rounded, seconds: self._tell(index, module, rounded, seconds),
            ).run()
        self.staged.save(result.tensors, result.note())

    def _advance(self, index: int) -> None:
        """Replace every sample's hidden states by what the finished layer makes of them."""
        tensors = self.staged.tensors(index)
        with finished_layer(self.walk, index, self.plan, self.layout, self.quantization_config, tensors):
            for number in range(len(self.activations)):
                self.poll()
                sample = self.activations.get(number).to(self.walk.device)
                self.activations.put(number, self.walk.run(index, sample))

    def _targets(self, index: int) -> dict[str, nn.Linear]:
        return layer_targets(self.walk, self.plan, index)

    def _tell(self, index: int, module: str, rounded: Rounded, seconds: float) -> None:
        self._num_made, self._num_left = self._num_made + 1, self._num_left - 1
        elapsed_s = time.monotonic() - self.started_at_s
        recipe = self.plan.recipes[module]
        self.report(
            JobProgress(
                phase="compressing",
                done=index,
                total=len(self.walk.layers),
                module=module,
                layer=index,
                num_layers=len(self.walk.layers),
                error_before=rounded.error_before if self._methods[recipe] is not None else None,
                error_after=rounded.error_after,
                seconds=seconds,
                eta_s=elapsed_s / self._num_made * self._num_left,
            )
        )
        self.poll()
