"""One compression job: base folder in, complete variant folder out.

The base is walked in the order of its files, one tensor in memory at a time, so a model far larger than memory can be
compressed. The result depends on the base and the recipe alone, but for the date in its manifest.
"""

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
from workers.checkpoint.headers import CheckpointHeaders, TensorHeader, read_headers
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.manifest import MANIFEST, Origin, write_manifest
from workers.checkpoint.safety import check_folder
from workers.checkpoint.save import (
    CheckpointWriter,
    FileRecord,
    PlannedTensor,
    copy_file,
    disk_full,
    staging,
    sync_folder,
    to_json,
    write_file,
)
from workers.checkpoint.tensors import SAFETENSORS_DTYPES, raw_chunks, read_tensor, tensor_bytes
from workers.checkpoint.tokenizer import COPIED_FILES, FAST_TOKENIZER, ensure_fast_tokenizer
from workers.compress.calibrated import layer_tensors, layers_folder, make_layers
from workers.compress.calibrated import mean_error as calibrated_error
from workers.compress.card import model_card
from workers.compress.method import Method, find_calibrated, find_method
from workers.compress.plan import CompressionPlan, plan_compression
from workers.device import memory_used_bytes, resolve_device
from workers.formats.grid import relative_error
from workers.formats.linear import Format
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipe_names import method_of, needs_calibration
from workers.protocol.specs import CompressSpec

# config.json, tokenizer and card beside the weights.
_SMALL_FILES_BYTES = 64 * 2**20


@dataclass(slots=True, kw_only=True)
class _Progress:
    """Counts bytes of the base and tells the front end after each tensor; `poll` raises when the job is cancelled."""

    report: Callable[[JobProgress], None]
    poll: Callable[[], None]
    total: int
    started_at_s: float = field(default_factory=time.monotonic)
    done: int = 0
    errors: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, headers: CheckpointHeaders, report: Callable[[JobProgress], None], poll: Callable[[], None]
    ) -> "_Progress":
        return cls(report=report, poll=poll, total=headers.weight_bytes)

    def finish(self, tensor: TensorHeader, unit: str, seconds: float, error: float | None) -> None:
        self.done += tensor.num_bytes
        if error is not None:
            self.errors.append(error)
        elapsed_s = time.monotonic() - self.started_at_s
        self.report(
            JobProgress(
                phase="compressing",
                done=self.done,
                total=self.total,
                unit=unit,
                error=error,
                seconds=seconds,
                eta_s=elapsed_s / self.done * (self.total - self.done) if self.done else None,
                rss_bytes=memory_used_bytes(torch.device("cpu")),
            )
        )
        self.poll()


def compress_checkpoint(
    spec: CompressSpec, report: Callable[[JobProgress], None], poll: Callable[[], None]
) -> CompressResult:
    """Run the job. `report` gets progress per tensor; `poll` is called between tensors and raises to cancel.

    Raises WorkerError: invalid_request, unsafe_checkpoint, variant_corrupt, unsupported_model, disk_full, or what
    `poll` raises. The output folder exists only if the job succeeds.
    """
    base, output = Path(spec.base_path), Path(spec.output_dir)
    is_calibrated = needs_calibration(spec.recipe)
    _, format = find_calibrated(spec.recipe) if is_calibrated else find_method(spec.recipe)
    _refuse_what_is_missing(spec)
    check_folder(base)
    config = configs.read_json(base / "config.json")
    if configs.quantization_config(config) is not None:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL, f"base {spec.base!r} is compressed already; name a plain one"
        )
    headers = read_headers(base)
    plan = plan_compression(build_skeleton(base), headers, (*spec.skip, *_left_alone(spec)))
    if not plan.targets:
        reasons = sorted(set(plan.kept.values()))
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL, f"nothing in base {spec.base!r} can be compressed: {'; '.join(reasons)}"
        )
    planned = _planned_tensors(headers, plan, format)
    weight_bytes = sum(tensor.num_bytes for tensor in planned)
    # Finished layers lie beside the variant until it is whole.
    _check_room(output.parent, weight_bytes * (2 if is_calibrated else 1))
    poll()
    with staging(output):
        if is_calibrated:
            writer, mean_error = _write_calibrated(spec, headers, plan, report, poll)
        else:
            writer, mean_error = _write_streamed(spec, headers, plan, planned, _Progress.of(headers, report, poll))
        records = dict(writer.records)
        config["quantization_config"] = format.quantization_config(plan.ignore)
        records |= _write_small_files(base, output, config)
        card = model_card(spec, plan, base_bytes=headers.weight_bytes, weight_bytes=weight_bytes, mean_error=mean_error)
        records["README.md"] = write_file(output, "README.md", card.encode())
        write_manifest(output, records, _origin(spec, fingerprint(base, headers)))
        sync_folder(output)
        sync_folder(output.parent)
        disk_bytes = sum(record.size for record in records.values()) + (output / MANIFEST).stat().st_size
    # Only now: until the variant is whole, the layers are what a killed job goes on from.
    shutil.rmtree(layers_folder(spec), ignore_errors=True)
    return CompressResult(
        weight_bytes=weight_bytes,
        disk_bytes=disk_bytes,
        num_compressed=len(plan.targets),
        kept=plan.kept,
        bits=format.num_bits,
        format=format.name,
        mean_error=mean_error,
    )


def _left_alone(spec: CompressSpec) -> tuple[str, ...]:
    """Patterns whose modules an override leaves uncompressed."""
    return tuple(override.pattern for override in spec.overrides if override.recipe is None)


def _refuse_what_is_missing(spec: CompressSpec) -> None:
    """Raise for wishes that would otherwise be ignored."""
    wishes = {
        "layout": spec.layout not in (None, "int-quantized"),
        "quantize_head": spec.quantize_head,
        "overrides": any(override.recipe not in (None, spec.recipe) for override in spec.overrides),
    }
    for name, is_wished in wishes.items():
        if is_wished:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"{name} cannot be chosen yet for {method_of(spec.recipe)}; leave it out",
            )


def _write_streamed(
    spec: CompressSpec,
    headers: CheckpointHeaders,
    plan: CompressionPlan,
    planned: list[PlannedTensor],
    progress: _Progress,
) -> tuple[CheckpointWriter, float]:
    """One tensor after the other, in the base's order. Returns the finished writer and the mean weight error."""
    method, _ = find_method(spec.recipe)
    with CheckpointWriter(Path(spec.output_dir), planned) as writer:
        for tensor in headers.tensors.values():
            _write_tensor(writer, tensor, plan, method, resolve_device(spec.device), progress)
        writer.finish()
    return writer, sum(progress.errors) / len(progress.errors)


def _write_calibrated(
    spec: CompressSpec,
    headers: CheckpointHeaders,
    plan: CompressionPlan,
    report: Callable[[JobProgress], None],
    poll: Callable[[], None],
) -> tuple[CheckpointWriter, float]:
    """Make all layers, then copy them and the rest of the base into the variant, in the base's order."""
    method, _ = find_calibrated(spec.recipe)
    staged = make_layers(spec, headers, plan, method, report, poll)
    made = layer_tensors(staged)
    sources: list[TensorHeader] = []
    for name, tensor in headers.tensors.items():
        if name in plan.targets:
            module = name.removesuffix("weight")
            sources += [
                header
                for made_name, header in made.items()
                if made_name.startswith(module) and (made_name not in headers.tensors or made_name == name)
            ]
        else:
            sources.append(made.get(name, tensor))
    planned = [PlannedTensor(name=source.name, dtype=source.dtype, shape=source.shape) for source in sources]
    with CheckpointWriter(Path(spec.output_dir), planned) as writer:
        for source in sources:
            poll()
            writer.write(source.name, raw_chunks(source))
        writer.finish()
    return writer, calibrated_error(staged)


def _planned_tensors(headers: CheckpointHeaders, plan: CompressionPlan, format: Format) -> list[PlannedTensor]:
    """What the variant will hold, in the base's order."""
    planned = []
    for name, tensor in headers.tensors.items():
        if name not in plan.targets:
            planned.append(PlannedTensor(name=name, dtype=tensor.dtype, shape=tensor.shape))
            continue
        module = name.removesuffix("weight")
        out_features, in_features = tensor.shape
        planned += [
            PlannedTensor(name=module + last, dtype=SAFETENSORS_DTYPES[layout.dtype], shape=layout.shape)
            for last, layout in format.layout(out_features, in_features).items()
        ]
    return planned


def _write_tensor(
    writer: CheckpointWriter,
    tensor: TensorHeader,
    plan: CompressionPlan,
    method: Method,
    device: torch.device,
    progress: _Progress,
) -> None:
    """Copy a kept tensor byte by byte, or compress it and write what stands for it."""
    start_s = time.monotonic()
    if tensor.name not in plan.targets:
        writer.write(tensor.name, raw_chunks(tensor))
        progress.finish(tensor, tensor.name, time.monotonic() - start_s, None)
        return
    weight = read_tensor(tensor).to(device)
    compressed = method.compress(weight)
    error = relative_error(weight, method.restore(compressed))
    for last, values in compressed.items():
        writer.write(tensor.name.removesuffix("weight") + last, [tensor_bytes(values.cpu())])
    progress.finish(tensor, plan.targets[tensor.name], time.monotonic() - start_s, error)


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


def _origin(spec: CompressSpec, base_fingerprint: str) -> Origin:
    recipe = {
        "method": method_of(spec.recipe),
        **{name: value for name, value in msgspec.to_builtins(spec.recipe).items() if name != "type"},
        "skip": list(spec.skip),
        "overrides": msgspec.to_builtins(spec.overrides),
        "seed": spec.seed,
    }
    return Origin(variant=spec.variant, base=spec.base, base_fingerprint=base_fingerprint, recipe=recipe)


def _check_room(folder: Path, weight_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = weight_bytes + _SMALL_FILES_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise disk_full(needed, free)
