"""The variants of a base side by side: what is known of each on one device, and what is not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from app.core import fit
from app.core.comparable import common, merged, newest_with_distance, of_text, of_workload
from app.core.ranking import Candidate, LevelSpeed, objectives, pareto_set
from app.core.variants import Quality, Variant, VariantState
from app.schemas.comparison import ComparisonObject, ComparisonRow, LevelRow
from app.store.bases import BaseRow
from workers.protocol.messages import MeasureResult

# How a variant's distance to its base is known.
MEASURED: Final = "measured"
VERIFIED: Final = "verified"
IS_BASE: Final = "is the base"


class Comparison:
    """The variants of one base, oldest first. device: as reports name it; quarantined variants are not compared.

    Measurements count if they were made as those of most variants were: see app/core/comparable.py.
    """

    def __init__(self, base: BaseRow, variants: Sequence[Variant], default_device: str, device: str | None) -> None:
        self.base = base
        self.variants = [one for one in variants if one.state is not VariantState.QUARANTINED]
        self.quarantined = [one for one in variants if one.state is VariantState.QUARANTINED]
        self.default_dtype = fit.auto_dtype(base.info.dtype, default_device)
        self.device = device if device is not None else self._newest_device()
        names = [one.id for one in self.variants]
        texts = common([one.quality.history if one.quality else () for one in self.variants], of_text)
        speeds = common([one.speeds.get(self.device, ()) for one in self.variants], of_workload)
        self._results = dict(zip(names, map(newest_with_distance, texts), strict=True))
        self._speeds = dict(zip(names, map(merged, speeds), strict=True))

    def with_common_measurements(self) -> list[Variant]:
        """The variants, each with the measurement of quality that counts here, or without any, as its history."""
        found = ((one, self._results[one.id]) for one in self.variants)
        return [
            one
            if one.quality is None
            else replace(one, quality=replace(one.quality, history=() if result is None else (result,)))
            for one, result in found
        ]

    def candidates(self) -> list[Candidate]:
        """What ranking needs of each."""
        return [self.candidate(one) for one in self.variants]

    def candidate(self, variant: Variant) -> Candidate:
        """One variant's numbers."""
        speed = self._speeds.get(variant.id)
        peak_bytes = None if speed is None else speed.report.peak_bytes
        return Candidate(
            variant=variant.id,
            method=variant.method,
            bits=variant.bits,
            weight_bytes=variant.weight_bytes,
            memory_bytes=variant.estimated_bytes if peak_bytes is None else peak_bytes,
            is_memory_measured=peak_bytes is not None,
            kl=self._distance(variant)[0],
            perplexity_increase=_increase(self._results.get(variant.id), is_base=self.is_reference(variant)),
            speeds={}
            if speed is None
            else {
                level.streams: LevelSpeed(tokens_per_s=level.tokens_per_s, ttft_ms=level.ttft_ms.p50)
                for level in speed.report.levels
            },
        )

    def is_reference(self, variant: Variant) -> bool:
        """True for what the others are compared with: the base in the type in which it is loaded by default."""
        return variant.kind == "cast" and variant.method == self.default_dtype

    def answer(self, streams: int) -> ComparisonObject:
        """All of it, as clients see it. streams: at which the speed counts for the Pareto set."""
        candidates = self.candidates()
        members = pareto_set(candidates, streams)
        return ComparisonObject(
            base=self.base.name,
            device=self.device,
            streams=streams,
            objectives=list(objectives(candidates, streams)),
            pareto=[one.id for one in self.variants if members[one.id]],
            data=[self._row(one, members[one.id]) for one in self.variants],
        )

    def _row(self, variant: Variant, is_pareto: bool | None) -> ComparisonRow:
        speed, (kl, source) = self._speeds[variant.id], self._distance(variant)
        report = None if speed is None else speed.report
        quality = self._results[variant.id]
        missing = {"quality": quality is None, "speed": speed is None}
        known = {
            "quality": variant.quality is not None and bool(variant.quality.history),
            "speed": self.device in variant.speeds,
        }
        return ComparisonRow(
            variant=variant.id,
            method=variant.method,
            format=variant.format,
            bits=variant.bits,
            state=variant.state,
            is_pareto=is_pareto,
            weight_bytes=variant.weight_bytes,
            bits_per_weight=8 * variant.weight_bytes / variant.num_parameters,
            bytes_on_disk=variant.bytes_on_disk or self.base.bytes_on_disk,
            peak_bytes=None if report is None else report.peak_bytes,
            load_s=None if report is None else report.load_s,
            perplexity=None if quality is None else quality.perplexity,
            perplexity_interval=None if quality is None else quality.perplexity_interval,
            kl_mean=kl,
            kl_mean_interval=None if quality is None else quality.kl_mean_interval,
            kl_source=source,
            top1_agreement=_agreement(quality, variant.quality, is_base=self.is_reference(variant)),
            levels=[] if report is None else [LevelRow.of(level) for level in report.levels],
            x_of_floor=None if report is None else report.x_of_floor,
            neighbours=[] if report is None else [one.variant for one in report.neighbours],
            measured=None if speed is None else speed.created,
            missing=[name for name, is_missing in missing.items() if is_missing],
            measured_otherwise=[name for name, is_missing in missing.items() if is_missing and known[name]],
        )

    def _distance(self, variant: Variant) -> tuple[float | None, str | None]:
        """KL to the base, and how it is known."""
        quality, result = variant.quality, self._results.get(variant.id)
        if result is not None and result.kl_mean is not None:
            return result.kl_mean, MEASURED
        if self.is_reference(variant):
            return 0.0, IS_BASE
        return (None, None) if quality is None or quality.kl_mean is None else (quality.kl_mean, VERIFIED)

    def _newest_device(self) -> str:
        newest = max(
            ((speeds[-1].created, device) for one in self.variants for device, speeds in one.speeds.items()),
            default=None,
        )
        return newest[1] if newest is not None else ""


def _increase(measured: MeasureResult | None, *, is_base: bool) -> float | None:
    if measured is not None and measured.base_perplexity is not None:
        return measured.perplexity / measured.base_perplexity - 1
    return 0.0 if is_base else None


def _agreement(measured: MeasureResult | None, verified: Quality | None, *, is_base: bool) -> float | None:
    if measured is not None and measured.top1_agreement is not None:
        return measured.top1_agreement
    if is_base:
        return 1.0
    return None if verified is None else verified.top1_agreement
