"""Which tensors of a checkpoint are compressed, which are kept, and why: decided on a model without memory."""

import fnmatch
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.checkpoint.headers import CheckpointHeaders
from workers.protocol.errors import WorkerError, WorkerErrorCode

# Read by their modelling code as raw numbers, not called as layers.
_READ_DIRECTLY = frozenset({"dt_proj"})
# A router's small error sends tokens to other experts; its bytes are nothing.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_COMPRESSIBLE = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """targets: stored tensor name -> module name, to be compressed. kept: module name -> reason, for every other
    module with a weight matrix. ignore: what readers of the format must leave alone.
    """

    targets: dict[str, str]
    kept: dict[str, str]
    ignore: list[str]


def plan_compression(model: PreTrainedModel, headers: CheckpointHeaders, skip: tuple[str, ...]) -> CompressionPlan:
    """Choose the linears of the decoder layers. model: on the meta device. skip: glob patterns of module names."""
    inside = _decoder_modules(model)
    untyped: Any = model
    head = untyped.get_output_embeddings()
    targets: dict[str, str] = {}
    kept: dict[str, str] = {}
    for name, module in model.named_modules():
        if not any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False)):
            continue
        stored = _stored_name(model, name, headers)
        reason = _reason_to_keep(name, module, inside, skip)
        if module is head:
            reason = "the output head: readers of the format expect it uncompressed"
        if reason is None and (stored is None or headers.tensors[stored].dtype not in _COMPRESSIBLE):
            reason = "its weight is not stored as one floating-point matrix of this name"
        if reason is None and stored is not None:
            targets[stored] = name
        else:
            kept[name] = str(reason)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name in kept}
    return CompressionPlan(
        targets=targets, kept=kept, ignore=sorted(linears | _renamed_matrices(targets, kept, headers))
    )


def _reason_to_keep(name: str, module: nn.Module, inside: set[str], skip: tuple[str, ...]) -> str | None:
    if isinstance(module, nn.Embedding):
        return "an embedding: rows are looked up, not multiplied"
    if isinstance(module, Conv1D):
        return "a transposed weight (Conv1D), which the format does not have"
    if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
        return "experts or convolutions stored as one 3-D tensor"
    last = name.rpartition(".")[2]
    if last in _ROUTERS:
        return "a router of a mixture of experts"
    if last in _READ_DIRECTLY:
        return "read directly by the recurrence"
    if not isinstance(module, nn.Linear):
        return f"no linear layer ({type(module).__name__})"
    if name not in inside:
        return "outside the decoder layers"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
        return "skipped on request"
    return None


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's layers: the largest module list of the language model.

    Raises WorkerError (unsupported_model) if it has none.
    """
    untyped: Any = model
    decoder = untyped.get_decoder()
    root = decoder if isinstance(decoder, nn.Module) else model
    lists = [module for module in root.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise WorkerError(WorkerErrorCode.UNSUPPORTED_MODEL, "the model has no list of decoder layers")
    layers = max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))
    return next(name for name, module in model.named_modules() if module is layers), layers


def _decoder_modules(model: PreTrainedModel) -> set[str]:
    """Names of all modules inside the decoder's layers."""
    path, layers = decoder_layers(model)
    return {f"{path}.{name}" for name, _ in layers.named_modules() if name} | {path}


def _stored_name(model: PreTrainedModel, module: str, headers: CheckpointHeaders) -> str | None:
    """The name of a module's weight in the files: as in the model, or without or with one more decoder prefix."""
    prefix = model.base_model_prefix + "."
    for name in (module, module.removeprefix(prefix), prefix + module):
        if f"{name}.weight" in headers.tensors:
            return f"{name}.weight"
    return None


def _renamed_matrices(targets: dict[str, str], kept: dict[str, str], headers: CheckpointHeaders) -> set[str]:
    """Patterns for kept matrices whose stored names are no module names, for instance single experts of a fused module.

    Readers that build one linear per stored name must know that these are not compressed. Numbers become `\\d+`: a
    model may have tens of thousands of experts.
    """
    patterns = set()
    for name, tensor in headers.tensors.items():
        module = name.removesuffix(".weight")
        if len(tensor.shape) == 2 and name not in targets and module not in kept:
            patterns.add(r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in module.split(".")))
    return {"re:" + p for p in patterns if not any(re.fullmatch(p, module) for module in targets.values())}
