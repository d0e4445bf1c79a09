"""The job of method `auto`: measure sensitivities, choose bits within the budget, try whole allocations, keep the best.

Sums of the units' own divergences choose well while units err independently of each other. So a handful of allocations
is made and measured as a whole, the largest uniform one that the budget allows among them: what is kept is the best of
them on text that neither GPTQ nor the sensitivities' Hessians have seen.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workers.auto.budget import WHOLE, Sizes, allocations_within, gptq_recipes, read_sizes
from workers.auto.heldout import HeldoutText
from workers.auto.sensitivity import SensitivityJob, Unit
from workers.auto.trials import Candidate, Trials
from workers.checkpoint.layouts.layout import Layout
from workers.checkpoint.layouts.table import LAYOUTS
from workers.checkpoint.tensors import tensor_bytes
from workers.compress.activations import Activations
from workers.compress.allocation import Allocation
from workers.compress.calibrated import frozen, keeping_layers, read_token_ids
from workers.compress.pipeline import CompressionJob, compress_with, compression_job
from workers.compress.plan import CompressionPlan
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.device import resolve_device
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import AllocationTrial, CompressResult, JobProgress, UnitBits
from workers.protocol.recipe_names import default_layout
from workers.protocol.recipes import AutoRecipe, Override
from workers.protocol.specs import CompressSpec

Report = Callable[[JobProgress], None]


def compress_within_budget(spec: CompressSpec, report: Report, poll: Callable[[], None]) -> CompressResult:
    """Run the job of an `auto` recipe. Arguments and errors: see `compress_checkpoint`; also WorkerError
    (invalid_request) for a budget that no choice keeps, or that leaves nothing to compress.
    """
    with keeping_layers(spec):
        search = BitSearch(spec, report, poll)
        chosen, allocation = search.run()
        return compress_with(chosen, allocation, report, poll)


class BitSearch:
    """The steps before the variant is written. What they find is kept beside the output, for a job that is killed."""

    def __init__(self, spec: CompressSpec, report: Report, poll: Callable[[], None]) -> None:
        assert isinstance(spec.recipe, AutoRecipe)
        self._spec = spec
        self._recipe = spec.recipe
        self._report = report
        self._poll = poll
        self._gptq = gptq_recipes(spec.recipe)
        self._layout: Layout = LAYOUTS[spec.layout or default_layout(spec.recipe)]
        self._job: CompressionJob = compression_job(self._uniform_spec(min(self._gptq)), report, poll)
        self._plan: CompressionPlan = self._job.plan(self._layout)

    def run(self) -> tuple[CompressSpec, Allocation]:
        """The job that makes the variant, and how its bits were chosen. Raises as `compress_within_budget`."""
        sizes = read_sizes(self._job.headers, self._plan, self._layout, self._recipe)
        # What is measured and written: the best layers so far and those of one trial, or layers and variant.
        self._job.check_room(2 * min(sizes.max_bytes, self._job.headers.weight_bytes))
        scratch = Path(f"{self._spec.output_dir}.states")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            units, candidates, divergences = self._find(sizes, self._heldout(scratch))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        order = sorted(range(len(candidates)), key=lambda number: (divergences[number], number))
        best = candidates[order[0]]
        trials = [_trial(candidates[number], divergences[number]) for number in order]
        table = [self._row(unit, bits, sizes) for unit, bits in zip(units, best.chosen, strict=True)]
        return best.spec, Allocation(recipe=self._recipe, units=table, trials=trials)

    def _find(self, sizes: Sizes, heldout: HeldoutText) -> tuple[list[Unit], list[Candidate], list[float]]:
        units = self._sensitivities(heldout)
        candidates = [
            Candidate(
                name=one.name,
                spec=self._mixed_spec(units, one.bits),
                chosen=one.bits,
                num_bytes=one.num_bytes,
                kl_sum=one.kl_sum,
            )
            for one in allocations_within(units, sizes, self._recipe)
        ]
        trials = Trials(
            candidates=candidates,
            heldout=heldout,
            staged=self._journal("trials", heldout, {"bits": [one.chosen for one in candidates]}),
            report=self._report,
            poll=self._poll,
        )
        return units, candidates, trials.run()

    def _heldout(self, scratch: Path) -> HeldoutText:
        calibration = self._spec.calibration
        samples = read_token_ids(self._spec)
        path = None if calibration is None else calibration.heldout_ids_path
        if path is None:
            raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "auto needs held-out text beside the calibration text")
        windows = read_token_ids(self._spec, path)
        if windows.shape[1] != samples.shape[1]:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"held-out windows have {windows.shape[1]} tokens, samples {samples.shape[1]}; they must be as long",
            )
        device = resolve_device(self._spec.device)
        return HeldoutText(
            walk=LayerWalk(Path(self._spec.base_path), self._job.headers, device),
            token_ids=windows,
            folder=scratch,
            limit_bytes=self._spec.activation_bytes,
            poll=self._poll,
        )

    def _sensitivities(self, heldout: HeldoutText) -> list[Unit]:
        samples = read_token_ids(self._spec)
        return SensitivityJob(
            walk=heldout.walk,
            plan=self._plan,
            layout=self._layout,
            recipes={
                bits: msgspec.structs.replace(recipe, true_sequential=False) for bits, recipe in self._gptq.items()
            },
            samples=Activations(
                heldout.walk.embed(samples), heldout.folder / "samples", heldout.limit_bytes, len(samples)
            ),
            heldout=heldout,
            staged=self._journal("sensitivities", heldout, {}),
            report=self._report,
            poll=self._poll,
        ).run()

    def _journal(self, name: str, heldout: HeldoutText, more: dict[str, Any]) -> StagedLayers:
        """Of steps that a job that goes on need not repeat."""
        everything = frozen(self._spec, self._job.headers, read_token_ids(self._spec))
        more = {"heldout_sha256": hashlib.sha256(tensor_bytes(heldout.token_ids)).hexdigest(), **more}
        return StagedLayers(Path(f"{self._spec.output_dir}.{name}"), {**everything, **more})

    def _uniform_spec(self, num_bits: int) -> CompressSpec:
        return msgspec.structs.replace(self._spec, recipe=self._gptq[num_bits], layout=self._layout.name)

    def _mixed_spec(self, units: list[Unit], bits: list[int]) -> CompressSpec:
        """GPTQ with an override for each unit. Main is the width of most modules; skip keeps what it kept."""
        counted = Counter[int]()
        overrides = []
        for unit, num_bits in zip(units, bits, strict=True):
            recipe = None if num_bits == WHOLE else self._gptq[num_bits]
            overrides += [Override(pattern=pattern, recipe=recipe) for pattern in unit.patterns]
            if recipe is not None:
                counted[num_bits] += len(unit.modules)
        main = counted.most_common(1)[0][0]
        return msgspec.structs.replace(self._uniform_spec(main), overrides=tuple(overrides))

    def _row(self, unit: Unit, bits: int, sizes: Sizes) -> UnitBits:
        return UnitBits(
            modules=unit.patterns,
            num_bits=bits,
            kl=unit.kl.get(bits, 0.0),
            num_bytes=sizes.of(unit.modules, bits),
            kl_by_bits=unit.kl,
        )


def _trial(candidate: Candidate, kl_mean: float) -> AllocationTrial:
    return AllocationTrial(name=candidate.name, num_bytes=candidate.num_bytes, kl_sum=candidate.kl_sum, kl_mean=kl_mean)
