"""The layers of a calibrated job: made one after another, kept beside the output until the variant is written."""

import glob
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from workers.checkpoint.base import fingerprint
from workers.checkpoint.headers import CheckpointHeaders, TensorHeader, read_header
from workers.checkpoint.layouts.layout import Layout
from workers.checkpoint.tensors import read_tensor, tensor_bytes
from workers.compress.activations import Activations
from workers.compress.layerwise import LayerJob
from workers.compress.plan import CompressionPlan
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.device import resolve_device
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress
from workers.protocol.specs import CompressSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerResults:
    """What a layer job has made. tensors: by their final names, in the files of the finished layers. errors: relative
    output error of each module on the calibration data. num_tokens: of that data, per module. fallbacks: modules that
    were rounded without their method, and why. folds, unfolded: see `FoldedScales`.
    """

    tensors: dict[str, TensorHeader] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    num_tokens: dict[str, int] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)
    folds: dict[str, list[str]] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)


def make_layers(
    spec: CompressSpec,
    headers: CheckpointHeaders,
    plan: CompressionPlan,
    layout: Layout,
    quantization_config: dict[str, Any],
    report: Callable[[JobProgress], None],
    poll: Callable[[], None],
) -> LayerResults:
    """Compress every layer that an earlier attempt has not finished.

    Raises WorkerError: invalid_request without calibration text, unsupported_model, or what `poll` raises; OSError.
    """
    token_ids = read_token_ids(spec)
    staged = StagedLayers(layers_folder(spec), frozen(spec, headers, token_ids))
    scratch = Path(spec.output_dir + ".activations")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        walk = LayerWalk(Path(spec.base_path), headers, resolve_device(spec.device))
        LayerJob(
            walk=walk,
            plan=plan,
            main=spec.recipe,
            layout=layout,
            quantization_config=quantization_config,
            staged=staged,
            activations=Activations(walk.embed(token_ids), scratch, spec.activation_bytes, len(token_ids)),
            report=report,
            poll=poll,
        ).run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _results(staged)


@contextmanager
def keeping_layers(spec: CompressSpec) -> Iterator[None]:
    """What a job keeps beside its output (finished layers; measurements of `auto`) stays if the process dies or a
    WorkerError ends it; an OSError, such as a full disk, removes it.

    So does success: until the variant is whole, it is what a killed job goes on from.
    """
    try:
        yield
    except ConnectionError:
        # An OSError too, and no reason to forget anything.
        raise
    except OSError:
        _forget(spec)
        raise
    _forget(spec)


def _forget(spec: CompressSpec) -> None:
    output = Path(spec.output_dir)
    for folder in output.parent.glob(f"{glob.escape(output.name)}.*"):
        shutil.rmtree(folder, ignore_errors=True)


def layers_folder(spec: CompressSpec) -> Path:
    """Where the finished layers of a job are."""
    return Path(spec.output_dir + ".layers")


def _results(staged: StagedLayers) -> LayerResults:
    found = LayerResults()
    for index, entry in enumerate(staged.notes):
        note = entry["note"]
        found.tensors.update(staged.headers(index))
        found.errors.update({module: after for module, (_, after) in note["errors"].items()})
        found.num_tokens.update(note["tokens"])
        found.fallbacks.update(note["fallbacks"])
        found.folds.update(note["folds"])
        found.unfolded.update(note["unfolded"])
    return found


def read_token_ids(spec: CompressSpec, path: str | None = None) -> Tensor:
    """(samples, tokens), int64, of the calibration text, or of another file of the front end.

    Raises WorkerError (invalid_request) where there are none.
    """
    if spec.calibration is None:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "this method looks at activations; give it calibration text")
    _, tensors = read_header(Path(path or spec.calibration.token_ids_path))
    token_ids = read_tensor(tensors["token_ids"]).to(torch.int64) if "token_ids" in tensors else torch.empty(0)
    if token_ids.dim() != 2 or token_ids.numel() == 0:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "the calibration file has no token_ids (samples, tokens)")
    return token_ids


def frozen(spec: CompressSpec, headers: CheckpointHeaders, token_ids: Tensor) -> dict[str, Any]:
    """Everything that decides the bytes of a layer."""
    return {
        "recipe": msgspec.to_builtins(spec.recipe),
        "layout": spec.layout,
        "overrides": msgspec.to_builtins(spec.overrides),
        "skip": list(spec.skip),
        "quantize_head": spec.quantize_head,
        "seed": spec.seed,
        "token_ids_sha256": hashlib.sha256(tensor_bytes(token_ids)).hexdigest(),
        "base_fingerprint": fingerprint(Path(spec.base_path), headers),
        "num_threads": torch.get_num_threads(),
        "software": {name: version(name) for name in ("slimserve", "torch", "transformers")},
    }
