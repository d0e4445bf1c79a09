"""Which tensors of a checkpoint are compressed, which are kept, and why: decided on a model without memory."""

import fnmatch
import functools
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workers.checkpoint.headers import CheckpointHeaders
from workers.checkpoint.layouts.layout import Layout, SchemeGroup
from workers.checkpoint.stored_names import split_stored_experts
from workers.compress.method import scheme_of, without_data
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.recipe_names import variant_suffix
from workers.protocol.recipes import Override, Recipe

# Weights that modelling code takes as raw numbers: Mamba's recurrence multiplies with the first, RWKV divides the
# others in place before its first forward pass.
_TOUCHED_DIRECTLY = ("dt_proj", "attention.output", "feed_forward.value")
# A router's small error sends tokens to other experts; its bytes are nothing.
_ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
_COMPRESSIBLE = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True, kw_only=True)
class CompressionPlan:
    """targets: stored tensor name -> module name, to be compressed. recipes, schemes: of each such module. kept: module
    name -> reason, for every other module with a weight matrix. ignore: stored names of what readers of
    the format must leave alone. tied_head: the stored embedding that is the output head too and is compressed as such,
    beside the embedding itself. layers: name of the list of the decoder's layers; num_layers: its length.
    """

    targets: dict[str, str]
    recipes: dict[str, Recipe]
    schemes: dict[str, Scheme]
    kept: dict[str, str]
    ignore: list[str]
    head: str
    layers: str
    num_layers: int
    tied_head: str | None = None

    def layer_of(self, module: str) -> int | None:
        """The number of the decoder layer that a module is in; None if it is in none."""
        if not module.startswith(f"{self.layers}."):
            return None
        number = module.removeprefix(f"{self.layers}.").partition(".")[0]
        return int(number) if number.isdecimal() else None

    def stored_name(self, module: str) -> str:
        """The name of a compressed module in the files, without `.weight`."""
        return self._stored[module]

    @functools.cached_property
    def _stored(self) -> dict[str, str]:
        return {module: name.removesuffix(".weight") for name, module in self.targets.items()}

    def groups(self) -> list[SchemeGroup]:
        """Modules by scheme, the scheme of most modules first."""
        found: dict[Scheme, list[str]] = {}
        for module, scheme in self.schemes.items():
            found.setdefault(scheme, []).append(self.stored_name(module))
        ordered = sorted(found.items(), key=lambda item: -len(item[1]))
        return [SchemeGroup(scheme=scheme, modules=modules) for scheme, modules in ordered]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for. skip: glob patterns of modules to leave alone. overrides: the first that matches wins."""

    recipe: Recipe
    layout: Layout
    skip: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    quantize_head: bool = False

    def recipe_of(self, module: str) -> Recipe | None:
        """The recipe for a module that can be compressed; None: leave it alone."""
        for override in self.overrides:
            if fnmatch.fnmatchcase(module, override.pattern):
                return override.recipe
        return self.recipe


def plan_compression(model: PreTrainedModel, headers: CheckpointHeaders, wishes: Wishes) -> CompressionPlan:
    """Choose the linears of the decoder layers, and the output head if wished. model: on the meta device; its experts
    are split if they can be.

    Raises WorkerError (invalid_request) if the layout cannot store what a recipe makes.
    """
    names = split_stored_experts(model, headers.tensors)
    stored_of = {module: stored for stored, module in names.modules.items()}
    path, layers = decoder_layers(model)
    inside = {f"{path}.{name}" for name, _ in layers.named_modules() if name} | {path}
    head, tied_head = _head(model, stored_of)
    plan = CompressionPlan(
        targets={},
        recipes={},
        schemes={},
        kept={},
        ignore=[],
        head=head,
        layers=path,
        num_layers=len(layers),
        tied_head=tied_head if wishes.quantize_head else None,
    )
    for name, module in model.named_modules():
        if not any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False)):
            continue
        stored = stored_of.get(name)
        if name == head:
            reason = None if wishes.quantize_head else "the output head: readers of the format expect it uncompressed"
            stored = f"{name}.weight" if stored is None and plan.tied_head else stored
        else:
            reason = names.fused.get(name) or _reason_to_keep(name, module, inside)
        reason = reason or _reason_of_wishes(name, wishes) or _reason_of_storage(stored, plan, headers)
        reason = reason or _choose(plan, wishes, name, str(stored), module)
        if reason is not None:
            plan.kept[name] = reason
    # Routers, and experts that stay fused, are no linears here and may be in other readers.
    kept = {name for name, tensor in headers.tensors.items() if len(tensor.shape) == 2}
    kept -= {stored_of.get(name) for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    kept |= {f"{head}.weight"} if head in plan.kept and head not in stored_of else set()
    plan.ignore.extend(sorted(name.removesuffix(".weight") for name in kept - plan.targets.keys()))
    return plan


def _choose(plan: CompressionPlan, wishes: Wishes, name: str, stored: str, module: nn.Module) -> str | None:
    """Add a linear to the plan, or tell why its shape has no room in the layout."""
    recipe = wishes.recipe_of(name)
    assert recipe is not None
    assert isinstance(module, nn.Linear)
    if name == plan.head:
        recipe = without_data(recipe)
    scheme = scheme_of(recipe)
    _require_room(wishes.layout, scheme, recipe)
    if scheme.kind == "grid" and scheme.group_size > 0 and module.in_features % scheme.group_size:
        return f"its {module.in_features} input columns are no multiple of the group size {scheme.group_size}"
    try:
        wishes.layout.plan(scheme, module.out_features, module.in_features)
    except WorkerError as error:
        return error.message
    plan.targets[stored] = name
    plan.recipes[name] = recipe
    plan.schemes[name] = scheme
    return None


def _require_room(layout: Layout, scheme: Scheme, recipe: Recipe) -> None:
    if not layout.accepts(scheme):
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"layout {layout.name!r} cannot store {variant_suffix(recipe)!r}; choose another layout or other options",
        )


def _head(model: PreTrainedModel, stored_of: dict[str, str]) -> tuple[str, str | None]:
    """Name of the output head, and the stored embedding that it shares its weight with, if it does."""
    untyped: Any = model
    head, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    names = {module: name for name, module in model.named_modules()}
    if head is None:
        return "", None
    return names[head], None if names[head] in stored_of else stored_of.get(names[embedding])


def _reason_of_wishes(name: str, wishes: Wishes) -> str | None:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in wishes.skip):
        return "skipped on request"
    return None if wishes.recipe_of(name) is not None else "left alone by an override"


def _reason_of_storage(stored: str | None, plan: CompressionPlan, headers: CheckpointHeaders) -> str | None:
    source = headers.tensors.get(plan.tied_head or "") if stored == f"{plan.head}.weight" else None
    source = headers.tensors.get(stored or "") or source
    if source is None or source.dtype not in _COMPRESSIBLE or len(source.shape) != 2:
        return "its weight is not stored as one floating-point matrix of this name"
    return None


def _reason_to_keep(name: str, module: nn.Module, inside: set[str]) -> str | None:
    if isinstance(module, nn.Embedding):
        return "an embedding: rows are looked up, not multiplied"
    if isinstance(module, Conv1D):
        return "a transposed weight (Conv1D), which the format does not have"
    if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)):
        return "experts or convolutions stored as one 3-D tensor"
    last = name.rpartition(".")[2]
    if last in _ROUTERS:
        return "a router of a mixture of experts"
    if f".{name}".endswith(tuple(f".{touched}" for touched in _TOUCHED_DIRECTLY)):
        return "its modelling code reads or changes the weight directly"
    if not isinstance(module, nn.Linear):
        return f"no linear layer ({type(module).__name__})"
    return None if name in inside else "outside the decoder layers"


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
