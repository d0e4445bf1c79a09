"""Whole allocations, made and measured: sums of the units' own divergences say nothing about what units do together."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from workers.auto.heldout import HeldoutText
from workers.checkpoint.layouts.layout import split_name
from workers.checkpoint.layouts.table import LAYOUTS
from workers.checkpoint.tensors import read_tensor
from workers.compress.activations import Activations
from workers.compress.calibrated import LayerResults, layers_folder, make_layers
from workers.compress.finished_layer import finished_layer, layer_targets
from workers.compress.pipeline import compression_job
from workers.compress.staged_layers import StagedLayers
from workers.protocol.messages import JobProgress
from workers.protocol.specs import CompressSpec

PHASE = "trying allocations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An allocation to try. spec: of the variant that it makes. kl_sum: of its units' own divergences."""

    name: str
    spec: CompressSpec
    chosen: list[int]
    num_bytes: int
    kl_sum: float


@dataclass(slots=True, kw_only=True)
class Trials:
    """Makes the layers of one candidate after the other and keeps the best. staged: a journal of finished trials."""

    candidates: list[Candidate]
    heldout: HeldoutText
    staged: StagedLayers
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]

    def run(self) -> list[float]:
        """KL(base || variant) of each candidate, mean nats per token of the held-out text. The layers of the best lie
        where its job looks for finished ones. Raises WorkerError, OSError, or what `poll` raises.
        """
        outputs: Activations | None = None
        for number in range(self.staged.num_finished, len(self.candidates)):
            outputs = outputs or self.heldout.base_outputs()
            self.staged.save({}, {"kl": self._try(number, outputs)})
            self._keep_best()
        divergences = self._divergences()
        best = self.candidates[divergences.index(min(divergences))]
        if self._folder(best).is_dir():
            target = layers_folder(best.spec)
            shutil.rmtree(target, ignore_errors=True)
            self._folder(best).rename(target)
        return divergences

    def _divergences(self) -> list[float]:
        return [entry["note"]["kl"] for entry in self.staged.notes]

    def _keep_best(self) -> None:
        divergences = self._divergences()
        best = divergences.index(min(divergences))
        for number in range(len(divergences)):
            if number != best:
                shutil.rmtree(self._folder(self.candidates[number]), ignore_errors=True)

    def _folder(self, candidate: Candidate) -> Path:
        return layers_folder(self._spec(candidate))

    def _spec(self, candidate: Candidate) -> CompressSpec:
        """The candidate's job with files of its own."""
        number = self.candidates.index(candidate)
        return msgspec.structs.replace(candidate.spec, output_dir=f"{candidate.spec.output_dir}.trial{number}")

    def _try(self, number: int, outputs: Activations) -> float:
        spec = self._spec(self.candidates[number])

        def report(progress: JobProgress) -> None:
            total = progress.total * len(self.candidates)
            done = progress.total * number + progress.done
            self.report(msgspec.structs.replace(progress, phase=PHASE, done=done, total=total, eta_s=None))

        job = compression_job(spec, report, self.poll)
        layout = LAYOUTS[str(spec.layout)]
        plan = job.plan(layout)
        config = layout.quantization_config(plan.groups(), plan.ignore)
        made = make_layers(spec, job.headers, plan, layout, config, report, self.poll)
        walk, hidden = self.heldout.walk, self.heldout.embedded("trial")
        for index in range(len(walk.layers)):
            stored = {plan.stored_name(module) for module in layer_targets(walk, plan, index)}
            tensors = {name: read_tensor(header) for name, header in _of_modules(made, stored).items()}
            with finished_layer(walk, index, plan, layout, config, tensors):
                self.heldout.advance(index, hidden)
        return self.heldout.divergences(outputs, hidden)[0]


def _of_modules(made: LayerResults, stored: set[str]) -> dict[str, Any]:
    """The tensors of these modules, by stored name."""
    return {name: header for name, header in made.tensors.items() if split_name(name)[0] in stored}
