"""One compression job: base folder in, complete variant folder out.

The base is walked in the order of its files, one tensor in memory at a time, so a model far larger than memory can be
compressed; methods that look at activations first make all layers, one at a time (layerwise.py). The result depends on
the base and the recipe alone, but for the date in its manifest.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from workers.checkpoint import config as configs
from workers.checkpoint.base import fingerprint
from workers.checkpoint.expert_slices import slice_experts
from workers.checkpoint.headers import CheckpointHeaders, read_headers
from workers.checkpoint.layouts.layout import Layout
from workers.checkpoint.layouts.table import LAYOUTS
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.manifest import MANIFEST, Origin, write_manifest
from workers.checkpoint.safety import check_folder
from workers.checkpoint.save import (
    CheckpointWriter,
    FileRecord,
    copy_file,
    disk_full,
    staging,
    sync_folder,
    to_json,
    write_file,
)
from workers.checkpoint.tokenizer import COPIED_FILES, FAST_TOKENIZER, ensure_fast_tokenizer
from workers.compress.allocation import Allocation
from workers.compress.calibrated import LayerResults, keeping_layers, make_layers
from workers.compress.card import cast_card, model_card
from workers.compress.pieces import Cast, Piece, cast_pieces, compressed_pieces
from workers.compress.plan import CompressionPlan, Wishes, plan_compression
from workers.device import resolve_device
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipe_names import (
    LAYOUTS_WITHOUT_HEAD,
    default_layout,
    method_of,
    needs_calibration,
    num_bits_of,
)
from workers.protocol.recipes import CastRecipe
from workers.protocol.specs import CompressSpec

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# config.json, tokenizer and card beside the weights.
_SMALL_FILES_BYTES = 64 * 2**20


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Counts bytes of the base and tells the front end after each tensor; `poll` raises when the job is cancelled.

    plan: knows the layers; None for a cast.
    """

    phase: str
    plan: CompressionPlan | None
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]
    total: int
    started_at_s: float = field(default_factory=time.monotonic)
    done: int = 0
    errors: list[float] = field(default_factory=list)

    def finish(self, piece: Piece, seconds: float) -> None:
        self.done = min(self.total, self.done + piece.source.num_bytes)
        if piece.error is not None:
            self.errors.append(piece.error)
        elapsed_s = time.monotonic() - self.started_at_s
        self.report(
            JobProgress(
                phase=self.phase,
                done=self.done,
                total=self.total,
                module=piece.unit,
                layer=None if self.plan is None else self.plan.layer_of(piece.unit),
                num_layers=None if self.plan is None else self.plan.num_layers,
                error_after=piece.error,
                seconds=seconds,
                eta_s=elapsed_s / self.done * (self.total - self.done) if self.done else None,
            )
        )
        self.poll()


def compress_checkpoint(
    spec: CompressSpec, report: Callable[[JobProgress], None], poll: Callable[[], None]
) -> CompressResult:
    """Run a job whose recipe is not `auto`. `report` gets progress per module or tensor; `poll` is called between them
    and raises to cancel.

    Raises WorkerError: invalid_request, unsafe_checkpoint, variant_corrupt, unsupported_model, disk_full, or what
    `poll` raises. The output folder exists only if the job succeeds.
    """
    job = compression_job(spec, report, poll)
    return job.cast() if isinstance(spec.recipe, CastRecipe) else job.compress()


def compress_with(
    spec: CompressSpec, allocation: Allocation, report: Callable[[JobProgress], None], poll: Callable[[], None]
) -> CompressResult:
    """As `compress_checkpoint`, for a spec that `auto` has made: the variant tells how its bits were chosen."""
    job = compression_job(spec, report, poll)
    job.allocation = allocation
    return job.compress()


def compression_job(
    spec: CompressSpec, report: Callable[[JobProgress], None], poll: Callable[[], None]
) -> "CompressionJob":
    """The job, with what the base's headers and config say. Arguments and errors: see `compress_checkpoint`."""
    check_folder(Path(spec.base_path))
    config = configs.read_json(Path(spec.base_path) / "config.json")
    if configs.read_quantization(Path(spec.base_path)) is not None:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL, f"base {spec.base!r} is compressed already; name a plain one"
        )
    headers = read_headers(Path(spec.base_path))
    return CompressionJob(spec=spec, config=config, headers=headers, report=report, poll=poll)


@dataclass(slots=True, kw_only=True)
class CompressionJob:
    """What the steps of one job share. allocation: what `auto` has chosen, if the spec is the result of that."""

    spec: CompressSpec
    config: dict[str, Any]
    headers: CheckpointHeaders
    report: Callable[[JobProgress], None]
    poll: Callable[[], None]
    allocation: Allocation | None = None

    def cast(self) -> CompressResult:
        """Store every floating tensor in another dtype."""
        assert isinstance(self.spec.recipe, CastRecipe)
        name = self.spec.recipe.dtype
        self._refuse_overrides_of_a_cast()
        pieces = cast_pieces(self.headers, _DTYPES[name])
        for key in ("dtype", "torch_dtype"):
            if key in self.config or key == "dtype":
                self.config[key] = str(_DTYPES[name]).removeprefix("torch.")
        self.check_room(_bytes_of(pieces))
        with staging(Path(self.spec.output_dir)):
            made = self._write(pieces, None, "compressing")
            card = cast_card(self.spec, base_bytes=self.headers.weight_bytes, weight_bytes=_bytes_of(pieces))
            disk_bytes = self._finish(made.records, card, {})
        num_cast = sum(isinstance(piece, Cast) for piece in pieces)
        return CompressResult(
            weight_bytes=_bytes_of(pieces),
            disk_bytes=disk_bytes,
            num_compressed=num_cast,
            kept={},
            bits=num_bits_of(self.spec.recipe),
            format=name,
            layout="",
            mean_error=_mean(made.errors),
        )

    def compress(self) -> CompressResult:
        """Choose codes for every planned linear and write them in the layout."""
        spec, layout = self.spec, LAYOUTS[self.spec.layout or default_layout(self.spec.recipe)]
        plan = self.plan(layout)
        self.config["quantization_config"] = layout.quantization_config(plan.groups(), plan.ignore)
        if plan.tied_head is not None:
            self.config["tie_word_embeddings"] = False
        device = resolve_device(spec.device)
        is_calibrated = any(map(needs_calibration, plan.recipes.values()))
        # Finished layers lie beside the variant until it is whole.
        planned_bytes = _bytes_of(compressed_pieces(self.headers, plan, layout, device, {}))
        self.check_room(planned_bytes * (2 if is_calibrated else 1))
        self.poll()
        with staging(Path(spec.output_dir)), keeping_layers(spec):
            layers = LayerResults()
            if is_calibrated:
                layers = make_layers(
                    spec, self.headers, plan, layout, self.config["quantization_config"], self.report, self.poll
                )
            pieces = compressed_pieces(self.headers, plan, layout, device, layers.tensors)
            made = self._write(pieces, plan, "writing" if is_calibrated else "compressing")
            weight_bytes = _bytes_of(pieces)
            errors = [*layers.errors.values(), *made.errors]
            card = model_card(
                spec,
                plan,
                layers,
                layout=layout.name,
                base_bytes=self.headers.weight_bytes,
                weight_bytes=weight_bytes,
                mean_error=_mean(errors),
                allocation=self.allocation,
            )
            disk_bytes = self._finish(made.records, card, layers.folds)
        main = plan.groups()[0].scheme
        return CompressResult(
            weight_bytes=weight_bytes,
            disk_bytes=disk_bytes,
            num_compressed=len(plan.targets),
            kept=plan.kept,
            bits=main.num_bits,
            format=main.format,
            layout=layout.name,
            mean_error=_mean(errors),
            fallbacks=layers.fallbacks,
            num_tokens=layers.num_tokens,
            folds=layers.folds,
            unfolded=layers.unfolded,
            allocation=[] if self.allocation is None else self.allocation.units,
            trials=[] if self.allocation is None else self.allocation.trials,
        )

    def plan(self, layout: Layout) -> CompressionPlan:
        """What becomes of each tensor; from here on, fused experts are read one by one. Raises as `compress`."""
        self._refuse_unreadable_head(layout)
        spec = self.spec
        wishes = Wishes(
            recipe=spec.recipe,
            layout=layout,
            skip=spec.skip,
            overrides=spec.overrides,
            quantize_head=spec.quantize_head,
        )
        skeleton = build_skeleton(Path(spec.base_path))
        self.headers = slice_experts(skeleton, self.headers)
        plan = plan_compression(skeleton, self.headers, wishes)
        if not plan.targets:
            reasons = "; ".join(sorted(set(plan.kept.values())))
            raise WorkerError(
                WorkerErrorCode.UNSUPPORTED_MODEL, f"nothing in base {spec.base!r} can be compressed: {reasons}"
            )
        return plan

    def _refuse_unreadable_head(self, layout: Layout) -> None:
        if self.spec.quantize_head and layout.name in LAYOUTS_WITHOUT_HEAD:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"layout {layout.name!r} has no compressed output head that transformers would read; choose layout "
                "'pack-quantized', or leave quantize_head out",
            )

    def _refuse_overrides_of_a_cast(self) -> None:
        if self.spec.overrides or self.spec.skip or self.spec.layout or self.spec.quantize_head:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                "a cast changes every tensor alike; leave skip, overrides, layout and quantize_head out",
            )

    def check_room(self, num_bytes: int) -> None:
        """Raise WorkerError (disk_full) if weights of this size and the small files have no room beside the output."""
        folder = Path(self.spec.output_dir).parent
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = num_bytes + _SMALL_FILES_BYTES, shutil.disk_usage(folder).free
        if needed > free:
            raise disk_full(needed, free)

    def _write(self, pieces: list[Piece], plan: CompressionPlan | None, phase: str) -> "_Written":
        """One piece after the other, in the base's order."""
        progress = _Progress(
            phase=phase, plan=plan, report=self.report, poll=self.poll, total=self.headers.weight_bytes
        )
        planned = [tensor for piece in pieces for tensor in piece.planned()]
        with CheckpointWriter(Path(self.spec.output_dir), planned) as writer:
            for piece in pieces:
                start_s = time.monotonic()
                for name, chunks in piece.write():
                    writer.write(name, chunks)
                progress.finish(piece, time.monotonic() - start_s)
            writer.finish()
        return _Written(records=dict(writer.records), errors=progress.errors)

    def _finish(self, records: dict[str, FileRecord], card: str, folds: dict[str, list[str]]) -> int:
        """Small files, manifest, sync. Returns the bytes of all files."""
        base, output = Path(self.spec.base_path), Path(self.spec.output_dir)
        records |= _write_small_files(base, output, self.config)
        records["README.md"] = write_file(output, "README.md", card.encode())
        write_manifest(output, records, self._origin(fingerprint(base, self.headers), folds))
        sync_folder(output)
        sync_folder(output.parent)
        return sum(record.size for record in records.values()) + (output / MANIFEST).stat().st_size

    def _origin(self, base_fingerprint: str, folds: dict[str, list[str]]) -> Origin:
        spec, asked = self.spec, self.spec.recipe if self.allocation is None else self.allocation.recipe
        recipe = {
            "method": method_of(asked),
            **{name: value for name, value in msgspec.to_builtins(asked).items() if name != "type"},
            "layout": spec.layout or default_layout(spec.recipe),
            "quantize_head": spec.quantize_head,
            "skip": list(spec.skip),
            "overrides": msgspec.to_builtins(spec.overrides),
            "seed": spec.seed,
        }
        if self.allocation is not None:
            recipe["allocation"] = self.allocation.as_data()
        if spec.calibration is not None:
            recipe["calibration_sha256"] = hashlib.sha256(
                Path(spec.calibration.token_ids_path).read_bytes()
            ).hexdigest()
        return Origin(
            variant=spec.variant, base=spec.base, base_fingerprint=base_fingerprint, recipe=recipe, folds=folds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """The weight files, and the relative errors of the weights that were rounded on the way."""

    records: dict[str, FileRecord]
    errors: list[float]


def _bytes_of(pieces: list[Piece]) -> int:
    return sum(tensor.num_bytes for piece in pieces for tensor in piece.planned())


def _mean(errors: list[float]) -> float:
    return sum(errors) / len(errors) if errors else 0.0


def _write_small_files(base: Path, output: Path, config: dict[str, Any]) -> dict[str, FileRecord]:
    """config.json with the compression in it, and the base's tokenizer, template and generation defaults."""
    records = {"config.json": write_file(output, "config.json", to_json(config))}
    for name in COPIED_FILES:
        if (base / name).is_file():
            records[name] = copy_file(base / name, output)
    if FAST_TOKENIZER not in records:
        content = ensure_fast_tokenizer(base, output).read_bytes()
        (output / FAST_TOKENIZER).unlink()
        records[FAST_TOKENIZER] = write_file(output, FAST_TOKENIZER, content)
    return records
