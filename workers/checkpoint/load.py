"""A checkpoint folder becomes a model, through transformers' own loader.

That loader knows each architecture's renamed and fused tensors, tied weights and computed buffers. Compressed linears
are left out for it, and read, decoded and built here, one at a time.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _get_model_class
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from workers.checkpoint import config as configs
from workers.checkpoint.base import stored_dtype
from workers.checkpoint.headers import CheckpointHeaders, TensorHeader, read_headers
from workers.checkpoint.layouts.layout import Layout, split_name
from workers.checkpoint.layouts.table import recognize
from workers.checkpoint.quantizer import QuantizedLayers, VacantLinear
from workers.checkpoint.safety import check_folder
from workers.checkpoint.stored_names import StoredNames
from workers.checkpoint.tensors import TORCH_DTYPES, read_tensor
from workers.device import resolve_dtype
from workers.formats.build import build_linear
from workers.formats.experts import fill_experts
from workers.formats.linear import TensorLayout
from workers.formats.swap import quantized_linears
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import DtypeName

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_STORED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float32}
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode, without gradients.

    format: "int4" for instance, several joined by "+", or the dtype's name for a plain model. dtype: of activations and
    unquantized weights. weight_bytes: measured over all parameters and buffers, tied ones once. num_parameters: of the
    model as published (scales of compressed weights are not counted).
    """

    model: PreTrainedModel
    format: str
    dtype: torch.dtype
    weight_bytes: int
    num_parameters: int


def load_model(
    path: Path, *, dtype: DtypeName, device: torch.device, on_progress: Progress, is_unrounded: bool = False
) -> LoadedModel:
    """Load any causal LM of transformers from safetensors, plain or compressed in a layout that slimserve reads.

    is_unrounded: see `build_linear`. on_progress gets (bytes done, bytes in all), at least once per tensor. Nothing is
    fetched and no code of the folder runs. Raises WorkerError: unsafe_checkpoint, variant_corrupt or unsupported_model.
    """
    check_folder(path)
    checkpoint = _Checkpoint.read(path)
    target = resolve_dtype(dtype, device, checkpoint.stored_dtype)
    progress = _HalfAndHalf(on_progress, checkpoint.headers.weight_bytes)
    with _reporting_weights(progress.first, checkpoint.headers):
        model, names = _read(checkpoint, target)
    _move(model, device, progress.second)
    formats: set[str] = set()
    if names is not None:
        formats = _fill(model, checkpoint, names, progress, dtype=target, device=device, is_unrounded=is_unrounded)
    model.requires_grad_(False)
    return LoadedModel(
        model=model,
        format="+".join(sorted(formats)) or _DTYPE_NAMES[target],
        dtype=target,
        weight_bytes=sum(tensor.nbytes for tensor in _tensors(model)),
        num_parameters=_num_parameters(model),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checkpoint:
    """A folder's files, sorted. compressed: stored module name -> its tensors by the rest of their names. plain: names
    of all other tensors. layout, quantization: None for a plain checkpoint.
    """

    path: Path
    config: PreTrainedConfig
    headers: CheckpointHeaders
    quantization: dict[str, Any] | None
    layout: Layout | None
    compressed: dict[str, dict[str, TensorHeader]]
    plain: list[str]

    @classmethod
    def read(cls, path: Path) -> "_Checkpoint":
        """Which modules are compressed the files tell, not the config: they cannot disagree."""
        headers = read_headers(path)
        quantization = configs.read_quantization(path)
        layout = None if quantization is None else recognize(quantization)
        modules: dict[str, dict[str, TensorHeader]] = {}
        for name, header in headers.tensors.items():
            module, rest = split_name(name)
            if rest != "bias":
                modules.setdefault(module, {})[rest] = header
        compressed = {} if layout is None else {n: held for n, held in modules.items() if _is_compressed(held, layout)}
        if layout is not None and not compressed:
            raise WorkerError(
                WorkerErrorCode.VARIANT_CORRUPT,
                f"the weights are said to be stored as {layout.name!r}, and no tensor is; fetch the model again",
            )
        taken = {header.name for held in compressed.values() for header in held.values()}
        return cls(
            path=path,
            config=load_config(path),
            headers=headers,
            quantization=quantization,
            layout=layout,
            compressed=compressed,
            plain=[name for name in headers.tensors if name not in taken],
        )

    @property
    def stored_dtype(self) -> torch.dtype:
        """Of activations: what most bytes are in; where weights are compressed, what the config says."""
        stated = self.config.dtype
        if self.layout is not None and isinstance(stated, torch.dtype):
            return stated
        return _STORED_DTYPES[stored_dtype(self.headers)]


def _is_compressed(held: Mapping[str, TensorHeader], layout: Layout) -> bool:
    known = {
        rest: TensorLayout(dtype=TORCH_DTYPES[header.dtype], shape=header.shape)
        for rest, header in held.items()
        if header.dtype in TORCH_DTYPES
    }
    return layout.holds_linear(known)


def load_config(path: Path) -> PreTrainedConfig:
    """The folder's config as transformers sees it, without its quantization_config.

    Raises WorkerError (unsupported_model) if transformers has no causal LM of this architecture.
    """
    raw = configs.read_json(path / "config.json")
    name = configs.architecture(raw)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL,
            f"the installed transformers cannot read the config of architecture {name} "
            f"(model_type {configs.model_type(raw)!r}): {type(error).__name__}",
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL,
            f"architecture {name} is no causal language model of transformers; slimserve serves those only",
        )
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def build_skeleton(path: Path) -> PreTrainedModel:
    """The folder's model on the meta device: every module, no memory. Raises as `load_config`."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(load_config(path), trust_remote_code=False)
    return model


def _read(checkpoint: _Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, StoredNames | None]:
    """The model with its plain tensors, and which module each stored weight is if some are compressed.

    The places of those are vacant then, and so are the places of experts beside them.
    """
    # not AutoModelForCausalLM: it wants a folder, to look for code of its own in it
    find_class: Any = _get_model_class
    architecture = find_class(checkpoint.config, MODEL_FOR_CAUSAL_LM_MAPPING)
    layers = None
    if checkpoint.compressed:
        layers = QuantizedLayers((f"{name}.weight" for name in checkpoint.compressed), checkpoint.plain)
    try:
        with ExitStack() as open_files:
            model, report = architecture.from_pretrained(
                None,
                config=checkpoint.config,
                state_dict=_slices(checkpoint, open_files),
                dtype=dtype,
                quantization_config=layers,
                # reported and refused below, by the tensor's name
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise WorkerError(
            WorkerErrorCode.UNSUPPORTED_MODEL, f"the model needs a package that is not installed: {error.name or error}"
        ) from error
    # A missing tensor would be served as random numbers.
    if missing := sorted(report["missing_keys"]):
        raise WorkerError(
            WorkerErrorCode.VARIANT_CORRUPT,
            f"the checkpoint lacks {len(missing)} tensors of its model, {missing[0]!r} first; fetch the model again",
        )
    if mismatched := sorted(str(entry[0]) for entry in report["mismatched_keys"]):
        raise WorkerError(
            WorkerErrorCode.VARIANT_CORRUPT,
            f"tensor {mismatched[0]!r} does not have the shape that config.json implies",
        )
    if report["unexpected_keys"]:
        logger.info("ignored %d tensors that the model does not use", len(report["unexpected_keys"]))
    if (checkpoint.path / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path, local_files_only=True)
    if checkpoint.quantization is not None:
        model.config.quantization_config = checkpoint.quantization
    return model, None if layers is None else layers.names


def _slices(checkpoint: _Checkpoint, open_files: ExitStack) -> dict[str, Any]:
    """The plain tensors, not read yet: transformers' loader takes each when its turn comes."""
    files: dict[Path, Any] = {}
    found: dict[str, Any] = {}
    for name in checkpoint.plain:
        file = checkpoint.headers.tensors[name].file
        if file not in files:
            files[file] = open_files.enter_context(safe_open(file, framework="pt"))
        found[name] = files[file].get_slice(name)
    return found


def _fill(
    model: PreTrainedModel,
    checkpoint: _Checkpoint,
    names: StoredNames,
    progress: "_HalfAndHalf",
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_unrounded: bool,
) -> set[str]:
    """Put a compressed layer, or an expert's plain one, into every vacant place, one at a time.

    Returns the names of the compressed layers' formats.
    """
    formats: set[str] = set()
    for stored_name, held in checkpoint.compressed.items():
        assert checkpoint.layout is not None
        assert checkpoint.quantization is not None
        name = names.modules[f"{stored_name}.weight"]
        vacant = model.get_submodule(name)
        assert isinstance(vacant, VacantLinear)
        codes = checkpoint.layout.decode(
            stored_name,
            {rest: read_tensor(header) for rest, header in held.items()},
            checkpoint.quantization,
            vacant.out_features,
            vacant.in_features,
        )
        formats.add(codes.format)
        layer = build_linear(codes, vacant.bias, dtype=dtype, device=device, is_unrounded=is_unrounded)
        model.set_submodule(name, layer)
        progress.both(sum(header.num_bytes for header in held.values()))

    def read(name: str) -> Tensor:
        header = checkpoint.headers.tensors[name]
        progress.both(header.num_bytes)
        return read_tensor(header)

    plain = set(checkpoint.plain)
    experts = {stored: name for own in names.experts.values() for stored, name in own.items() if stored in plain}
    fill_experts(model, experts, read, device=device, dtype=dtype)
    return formats


def _move(model: nn.Module, device: torch.device, on_bytes: Callable[[int], None]) -> None:
    """Give every tensor memory of its own on the device, one at a time.

    On the CPU transformers leaves weights as views into the mapped files: the process would die of SIGBUS when a file
    is cut, page by page reads would fall into the first requests, and huge pages could not be used.
    """
    for tensor in _tensors(model):
        tensor.data = tensor.data.to(device, copy=True)
        on_bytes(tensor.nbytes)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer once, whatever the number of its names."""
    yield from model.parameters()
    yield from model.buffers()


def _num_parameters(model: nn.Module) -> int:
    total = sum(parameter.numel() for parameter in model.parameters())
    for layer in quantized_linears(model).values():
        stored = sum(parameter.numel() for parameter in layer.parameters())
        bias = 0 if layer.bias is None else layer.bias.numel()
        total += layer.in_features * layer.out_features + bias - stored
    return total


class _HalfAndHalf:
    """One progress from two passes over the weights: reading (and converting), then moving to the device."""

    def __init__(self, on_progress: Progress, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._read = 0
        self._moved = 0

    def first(self, done: int) -> None:
        self._read = min(done, self._total)
        self._on_progress(self._read // 2, self._total)

    def second(self, num_bytes: int) -> None:
        self._moved += num_bytes
        self._on_progress(min(self._total, (self._read + self._moved) // 2), self._total)

    def both(self, num_bytes: int) -> None:
        """A tensor that was read and is on its device."""
        self._read += num_bytes
        self.second(num_bytes)


@contextmanager
def _reporting_weights(on_bytes: Callable[[int], None], headers: CheckpointHeaders) -> Iterator[None]:
    """Have transformers' loader report bytes in place of drawing a progress bar."""

    def replace_bar(bar: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = args[0] if args else None
        if kwargs.get("desc") == "Loading weights" and items is not None:
            return _report_items(list(items), on_bytes, headers)
        return bar(*args, **{**kwargs, "disable": True})

    previous = transformers_logging.set_tqdm_hook(replace_bar)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _report_items(
    items: list[tuple[str, Any]], on_bytes: Callable[[int], None], headers: CheckpointHeaders
) -> Iterator[tuple[str, Any]]:
    """Pass the items on; after each, its bytes are done. Renamed and fused tensors share the bytes without a name."""
    known: Mapping[str, int] = {name: headers.tensors[name].num_bytes for name, _ in items if name in headers.tensors}
    share = (headers.weight_bytes - sum(known.values())) / max(1, len(items) - len(known))
    done = 0.0
    for name, item in items:
        yield name, item
        done += known.get(name, share)
        on_bytes(int(done))
