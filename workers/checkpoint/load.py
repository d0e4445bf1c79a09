"""A checkpoint folder becomes a model, through transformers' own loader.

That loader knows each architecture's renamed and fused tensors, tied weights and computed buffers, for plain weights
and for compressed ones alike: compressed layers are swapped in while the model is still without memory.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from workers.checkpoint import config as configs
from workers.checkpoint.base import stored_dtype
from workers.checkpoint.headers import CheckpointHeaders, read_headers
from workers.checkpoint.quantizer import QuantizedLayers
from workers.checkpoint.safety import check_folder
from workers.checkpoint.tensors import TORCH_DTYPES
from workers.device import resolve_dtype
from workers.formats.linear import Format, TensorLayout
from workers.formats.swap import quantized_linears
from workers.formats.table import recognize
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import DtypeName

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_STORED_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float32}
_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode, without gradients.

    format: "int8", or the dtype's name for a plain model. dtype: of activations and unquantized weights. weight_bytes:
    measured over all parameters and buffers, tied ones once. num_parameters: of the model as published (scales of
    compressed weights are not counted).
    """

    model: PreTrainedModel
    format: str
    dtype: torch.dtype
    weight_bytes: int
    num_parameters: int


def load_model(path: Path, *, dtype: DtypeName, device: torch.device, on_progress: Progress) -> LoadedModel:
    """Load any causal LM of transformers from safetensors, plain or in a format of slimserve.

    on_progress gets (bytes done, bytes in all), at least once per tensor. Nothing is fetched and no code of the folder
    runs. Raises WorkerError: unsafe_checkpoint, variant_corrupt or unsupported_model.
    """
    check_folder(path)
    headers = read_headers(path)
    config = load_config(path)
    quantization = configs.quantization_config(configs.read_json(path / "config.json"))
    format = None if quantization is None else recognize(quantization)
    target = resolve_dtype(dtype, device, _STORED_DTYPES[stored_dtype(headers)])
    progress = _HalfAndHalf(on_progress, headers.weight_bytes)
    with _reporting_weights(progress.first, headers):
        model = _read(path, config, target, _quantized_layers(headers, format))
    if quantization is not None:
        model.config.quantization_config = quantization
    _move(model, device, progress.second)
    model.requires_grad_(False)
    return LoadedModel(
        model=model,
        format=_DTYPE_NAMES[target] if format is None else format.name,
        dtype=target,
        weight_bytes=sum(tensor.nbytes for tensor in _tensors(model)),
        num_parameters=_num_parameters(model),
    )


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


def _read(
    path: Path, config: PreTrainedConfig, dtype: torch.dtype, quantization: QuantizedLayers | None
) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    try:
        model, report = auto.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            quantization_config=quantization,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
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
    loaded: PreTrainedModel = model
    return loaded


def _quantized_layers(headers: CheckpointHeaders, format: Format | None) -> QuantizedLayers | None:
    """Which modules the files hold in a compressed form. The files are asked, not the config: they cannot disagree."""
    if format is None:
        return None
    modules: dict[str, dict[str, TensorLayout]] = {}
    for name, tensor in headers.tensors.items():
        module, _, last = name.rpartition(".")
        if tensor.dtype in TORCH_DTYPES:
            layout = TensorLayout(dtype=TORCH_DTYPES[tensor.dtype], shape=tensor.shape)
            modules.setdefault(module, {})[last] = layout
    return QuantizedLayers(format, {name: stored for name, stored in modules.items() if format.holds_linear(stored)})


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
        self._moved = 0

    def first(self, done: int) -> None:
        self._on_progress(min(done, self._total) // 2, self._total)

    def second(self, num_bytes: int) -> None:
        self._moved += num_bytes
        self._on_progress(min(self._total, (self._total + self._moved) // 2), self._total)


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
