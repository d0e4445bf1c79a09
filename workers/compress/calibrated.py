"""The layers of a calibrated job: made one after another, kept beside the output until the variant is written."""

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
    token_ids = _token_ids(spec)
    staged = StagedLayers(_layers_folder(spec), _frozen(spec, headers, token_ids))
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
    """Finished layers stay if the process dies or a WorkerError ends it; an OSError, such as a full disk, removes them.

    So does success: until the variant is whole, they are what a killed job goes on from.
    """
    try:
        yield
    except ConnectionError:
        # An OSError too, and no reason to forget anything.
        raise
    except OSError:
        _forget_layers(spec)
        raise
    _forget_layers(spec)


def _forget_layers(spec: CompressSpec) -> None:
    shutil.rmtree(_layers_folder(spec), ignore_errors=True)


def _layers_folder(spec: CompressSpec) -> Path:
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


def _token_ids(spec: CompressSpec) -> Tensor:
    if spec.calibration is None:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "this method looks at activations; give it calibration text")
    _, tensors = read_header(Path(spec.calibration.token_ids_path))
    token_ids = read_tensor(tensors["token_ids"]).to(torch.int64) if "token_ids" in tensors else torch.empty(0)
    if token_ids.dim() != 2 or token_ids.numel() == 0:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "the calibration file has no token_ids (samples, tokens)")
    return token_ids


def _frozen(spec: CompressSpec, headers: CheckpointHeaders, token_ids: Tensor) -> dict[str, Any]:
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
