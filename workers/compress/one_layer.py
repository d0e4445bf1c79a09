"""One decoder layer under methods that look at activations: scales are folded first, then weights are rounded.

Linears that read the same numbers are observed once. Those of one family (the same product of all experts) share one
pass over the samples. What saw too few tokens is rounded to nearest: so few say more about themselves than about the
text to come.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from workers.checkpoint.layouts.layout import Layout
from workers.compress.fold_search import FoldFinder
from workers.compress.layer_folds import FoldedScales, LayerFolds
from workers.compress.layer_inputs import LayerInputs, family
from workers.compress.method import CalibratedMethod, Observer, Rounded, round_weight, without_data
from workers.compress.plan import CompressionPlan
from workers.formats.codes import Codes
from workers.formats.grid import relative_error
from workers.protocol.recipes import Recipe

# Hessians of one pass: five of 14,336 columns, or two hundred of 2,048. Fewer a pass would mean more passes.
_HESSIAN_BYTES = 4 * 2**30
# AWQ's scales from 32 tokens did up to 12 % worse than none on text that they were not chosen by, from 128 tokens 1 %
# worse at most (the linears of three small trained models). The share is for short calibration texts.
_MIN_TOKENS = 128
_MIN_SHARE = 1 / 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Linears that read one tensor and share a method. modules: also those of the group without one, rounded along."""

    method: CalibratedMethod | None
    modules: list[str]
    in_features: int


@dataclass(slots=True, kw_only=True)
class LayerResult:
    """What has become of a layer. tensors: by stored name. errors: [before, after], by module. folds, unfolded: see
    `FoldedScales`.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    folds: dict[str, list[str]] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)

    def note(self) -> dict[str, Any]:
        """All but the tensors, as JSON data."""
        return {
            "errors": self.errors,
            "tokens": self.tokens,
            "fallbacks": self.fallbacks,
            "folds": self.folds,
            "unfolded": self.unfolded,
        }


@dataclass(slots=True, kw_only=True)
class LayerCompression:
    """Compresses the layer that `inputs` runs. linears: its targets by module name, with memory. main: the recipe that
    chooses scales where linears of several share them. tell: called with each module, its result and the seconds it
    took.
    """

    inputs: LayerInputs
    linears: dict[str, nn.Linear]
    plan: CompressionPlan
    main: Recipe
    layout: Layout
    methods: dict[Recipe, CalibratedMethod | None]
    finder: FoldFinder
    tell: Callable[[str, Rounded, float], None]
    result: LayerResult = field(default_factory=LayerResult)
    _scales: FoldedScales = field(default_factory=FoldedScales)
    _min_tokens: int = 1

    def run(self) -> LayerResult:
        """Fold, then round. Raises WorkerError, or what `poll` or `tell` raises."""
        if not self.linears:
            return self.result
        num_tokens = len(self.inputs.samples) * self.inputs.first.shape[1]
        self._min_tokens = max(1, min(_MIN_TOKENS, int(num_tokens * _MIN_SHARE)))
        parts = self._parts(self.inputs.groups(self.linears))
        observers = self._fold([part for part in parts if part.method is not None and part.method.folds_into])
        later = []
        for part in parts:
            if part.method is None or part.modules[0] in observers:
                self._write(self._round(part, observers.get(part.modules[0])))
            else:
                later.append(part)
        is_sequential = any(part.method is not None and part.method.is_sequential for part in later)
        finished: dict[str, Codes] = {}
        for stage in self._stages(later, is_sequential):
            finished |= self._round_stage(stage)
            if is_sequential:
                # What comes later in the layer is to see what the compressed weights make.
                self._write(finished)
                finished = {}
        self._write(finished)
        return self.result

    def _parts(self, groups: list[list[str]]) -> list[Part]:
        """Each group by recipe."""
        parts: list[Part] = []
        for group in groups:
            by_method: dict[Recipe, list[str]] = {}
            without: list[str] = []
            for module in group:
                recipe = self.plan.recipes[module]
                if self.methods[recipe] is None:
                    without.append(module)
                else:
                    by_method.setdefault(recipe, []).append(module)
            width = self.linears[group[0]].in_features
            if without and not by_method:
                parts.append(Part(method=None, modules=without, in_features=width))
            for recipe, modules in by_method.items():
                parts.append(Part(method=self.methods[recipe], modules=modules + without, in_features=width))
                without = []
        return parts

    def _fold(self, parts: list[Part]) -> dict[str, Observer]:
        """Choose and fold the scales of all parts on the layer as it was. Returns what was seen, by first module."""
        if not parts:
            return {}
        folds = LayerFolds(
            inputs=self.inputs,
            plan=self.plan,
            main=self.main,
            finder=self.finder,
            methods=self.methods,
            linears=self.linears,
        )
        observers = {part.modules[0]: self._observer(part) for part in parts}
        wanting = {module: part.modules[0] for part in parts for module in self._with_own(part)}
        self._scales = folds.fold(wanting, observers, self._is_enough)
        self.result.tensors |= self._scales.tensors
        self.result.folds |= self._scales.folds
        self.result.unfolded |= self._scales.unfolded
        return observers

    def _with_own(self, part: Part) -> list[str]:
        return [module for module in part.modules if self.methods[self.plan.recipes[module]] is part.method]

    def _stages(self, parts: list[Part], is_sequential: bool) -> Iterator[list[Part]]:
        """Parts that are observed in one pass, in the order of first calls."""
        families: dict[object, list[Part]] = {}
        for part in parts:
            key = tuple(map(family, part.modules)) if is_sequential else None
            families.setdefault(key, []).append(part)
        for members in families.values():
            stage: list[Part] = []
            for part in members:
                if stage and sum(4 * one.in_features**2 for one in [*stage, part]) > _HESSIAN_BYTES:
                    yield stage
                    stage = []
                stage.append(part)
            yield stage

    def _round_stage(self, stage: list[Part]) -> dict[str, Codes]:
        observers = {part.modules[0]: self._observer(part) for part in stage}
        self.inputs.observe(observers)
        codes: dict[str, Codes] = {}
        for part in stage:
            # Taken out, so that one Hessian after the other is freed.
            codes |= self._round(part, observers.pop(part.modules[0]))
        return codes

    def _observer(self, part: Part) -> Observer:
        assert part.method is not None
        return part.method.observer(part.in_features)

    def _round(self, part: Part, observed: Observer | None) -> dict[str, Codes]:
        """The codes of a part's weights, and all that is told of them."""
        codes: dict[str, Codes] = {}
        for module in part.modules:
            start_s = time.monotonic()
            rounded = self._round_one(module, part, observed)
            codes[module] = rounded.codes
            stored = self.plan.stored_name(module)
            tensors = self.layout.encode(rounded.codes, self.plan.schemes[module])
            self.result.tensors |= {f"{stored}.{last}": values.cpu() for last, values in tensors.items()}
            self.result.errors[module] = [rounded.error_before, rounded.error_after]
            if observed is not None:
                self.result.tokens[module] = observed.num_tokens
            self.tell(module, rounded, time.monotonic() - start_s)
        return codes

    def _round_one(self, module: str, part: Part, observed: Observer | None) -> Rounded:
        weight, recipe = self.linears[module].weight, self.plan.recipes[module]
        # What has no scales of its own was observed after those of its neighbours had been folded.
        has_scales = part.method is not None and part.method.folds_into
        scales = self._scales.factors.get(module) if has_scales else None
        if (method := self.methods[recipe]) is not None:
            assert observed is not None
            if self._is_enough(observed.num_tokens):
                return method.round(weight, observed, scales)
            self.result.fallbacks[module] = (
                f"{observed.num_tokens} tokens of the calibration text reached it, fewer than {self._min_tokens}: "
                "rounded to nearest"
            )
        codes = round_weight(without_data(recipe), weight, self.layout.scale_dtype)
        error = _error(weight, codes.dequantize(), observed, scales)
        return Rounded(codes=codes, error_before=error, error_after=error)

    def _is_enough(self, num_tokens: int) -> bool:
        return num_tokens >= self._min_tokens

    def _write(self, codes: dict[str, Codes]) -> None:
        """Have the layer compute with compressed weights."""
        for module, own in codes.items():
            self.linears[module].weight.copy_(own.dequantize())


def _error(weight: Tensor, approximation: Tensor, observed: Observer | None, scales: Tensor | None) -> float:
    """Of the outputs where inputs were seen, without `scales`; else of the weight."""
    if observed is None or not observed.num_tokens:
        return relative_error(weight, approximation)
    if scales is not None:
        weight, approximation = weight / scales, approximation / scales
    return observed.relative_error(weight, approximation)
