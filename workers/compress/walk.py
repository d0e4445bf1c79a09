"""A model run layer by layer from its files: its skeleton is on the meta device, one layer at a time has memory.

The real modelling code decides what each layer is called with (masks, position embeddings, layer types): one forward
pass through the skeleton, in which every layer only notes its arguments, tells. Experts that are stored one by one are
linears of their own here (formats/experts.py).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from workers.checkpoint.headers import CheckpointHeaders
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.stored_names import split_stored_experts
from workers.checkpoint.tensors import TORCH_DTYPES, read_tensor
from workers.compress.plan import decoder_layers
from workers.formats.experts import fill_experts
from workers.protocol.errors import WorkerError, WorkerErrorCode

# What a layer returns beside its hidden states, in a pass that only notes how layers are called.
_COMPANION = object()


class _EnoughError(Exception):
    """Ends a forward pass whose rest is not wanted."""


class LayerWalk:
    """The decoder layers of a base, each with memory only while it is asked for. All numbers are fp32."""

    def __init__(self, base: Path, headers: CheckpointHeaders, device: torch.device) -> None:
        # Any: transformers leaves half of a model's methods without types.
        skeleton: Any = nn.Module.eval(build_skeleton(base))
        self.model: Any = skeleton.float()
        self.model.requires_grad_(False)
        self.device = device
        self._headers = headers
        self._mapping: Any = get_model_conversion_mapping(self.model)
        # Experts are given their weights by hand: for transformers the model has none of these any more.
        names = split_stored_experts(self.model, headers.tensors)
        self._experts = {stored: module for own in names.experts.values() for stored, module in own.items()}
        self._parameters = {name: parameter for name, (parameter, _) in names.destinations.items()}
        self._parameters |= {stored: f"{module}.weight" for stored, module in self._experts.items()}
        renamed = [n for n, (_, pattern) in names.destinations.items() if pattern is None or n in self._experts]
        self._stored = {self._parameters[name]: name for name in renamed}
        self.path, self.layers = decoder_layers(self.model)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._has_companion = False

    def stored_names(self, index: int) -> list[str]:
        """Names of the tensors that the files hold for one layer, in the files' order."""
        prefix = f"{self.path}.{index}."
        return [name for name, parameter in self._parameters.items() if parameter.startswith(prefix)]

    def stored_as(self, parameter: str) -> tuple[str, torch.dtype] | None:
        """Name and dtype of a parameter in the files; None if it is computed, or fused from several tensors."""
        name = self._stored.get(parameter)
        dtype = TORCH_DTYPES.get(self._headers.tensors[name].dtype) if name is not None else None
        return None if name is None or dtype is None else (name, dtype)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Iterator[Tensor]:
        """Each sample's input of the first layer, (1, tokens, hidden). token_ids: (samples, tokens).

        Also learns how each layer is called; so it comes before `run`. Raises WorkerError (unsupported_model) for a
        model whose layers cannot be run one by one on hidden states.
        """
        # The head is no part of any hidden state, and the largest tensor of small models.
        self._materialize(self.model, [name for name in self._outside() if name != "lm_head.weight"])
        try:
            for number, ids in enumerate(token_ids):
                yield self._note_calls(ids[None].to(self.device), is_first=number == 0)
        finally:
            self.model.to("meta")

    @contextmanager
    def layer(self, index: int, tensors: dict[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """One layer with memory. tensors: take these, by stored name, in place of the base's own."""
        layer = self.layers[index]
        self.refill(index, tensors)
        try:
            yield layer
        finally:
            layer.to("meta")

    def refill(self, index: int, tensors: dict[str, Tensor] | None = None) -> None:
        """Give a layer the numbers of its files once more."""
        self._materialize(self.layers[index], self.stored_names(index), tensors or {})

    @torch.inference_mode()
    def run(self, index: int, hidden: Tensor) -> Tensor:
        """What layer `index`, which has memory now, makes of one sample's hidden states (1, tokens, hidden)."""
        args, kwargs = self._calls[index]
        output = self.layers[index](hidden, *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.inference_mode()
    def logits(self, samples: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """What norm and head make of the last layer's output: (tokens, vocabulary) for each sample.

        samples: token ids (tokens,) and hidden states (1, tokens, hidden).
        """
        self._materialize(self.model, self._outside())
        self.model.tie_weights()
        try:
            for ids, hidden in samples:
                with _in_place_of_forward(self.layers, _constant(self._as_returned(hidden))):
                    output = self.model(input_ids=ids[None].to(self.device), use_cache=False)
                yield output.logits[0]
        finally:
            self.model.to("meta")

    def _outside(self) -> list[str]:
        """Names of the tensors that belong to no layer."""
        return [name for name, parameter in self._parameters.items() if not parameter.startswith(f"{self.path}.")]

    def _note_calls(self, ids: Tensor, *, is_first: bool) -> Tensor:
        """The first layer's input for one sample; from the first sample also every layer's other arguments."""
        inputs: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        wanted = len(self.layers) if is_first else 1

        def noting(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            inputs.append(hidden)
            calls.append((args, kwargs))
            if len(calls) == wanted:
                raise _EnoughError
            return self._as_returned(hidden)

        try:
            with _in_place_of_forward(self.layers, noting), suppress(_EnoughError):
                self.model.get_decoder()(input_ids=ids, use_cache=False)
        except (TypeError, ValueError, AttributeError) as error:
            if not self._has_companion:
                self._has_companion = True
                return self._note_calls(ids, is_first=is_first)
            raise _cannot_walk(f"its decoder does not call its layers with hidden states alone ({error})") from error
        if any(given is _COMPANION for args, kwargs in calls for given in (*args, *kwargs.values())):
            raise _cannot_walk("its layers hand each other more than hidden states")
        if len(calls) < wanted:
            raise _cannot_walk(f"its decoder calls {len(calls)} of its {wanted} layers")
        if is_first:
            self._calls = calls
        elif not _are_equal(calls[0], self._calls[0]):
            raise _cannot_walk("its layers see the tokens directly")
        return inputs[0]

    def _as_returned(self, hidden: Tensor) -> Any:
        """As the decoder wants it of a layer: hidden states, alone or with a companion."""
        return (hidden, _COMPANION) if self._has_companion else hidden

    def _materialize(self, module: nn.Module, names: list[str], tensors: dict[str, Tensor] | None = None) -> None:
        """Load the stored tensors, renamed and fused as the architecture wants, then compute the buffers."""
        given = tensors or {}

        def read(name: str) -> Tensor:
            return given[name] if name in given else read_tensor(self._headers.tensors[name])

        config = LoadStateDictConfig(
            weight_mapping=self._mapping, dtype=torch.float32, device_map={"": str(self.device)}
        )
        plain = {name: read(name) for name in names if name not in self._experts}
        with _no_progress_bar():
            convert_and_load_state_dict_in_model(self.model, plain, config)
        experts = {name: self._experts[name] for name in names if name in self._experts}
        fill_experts(self.model, experts, read, device=self.device, dtype=torch.float32)
        for parameter in module.parameters():
            parameter.requires_grad_(False)
            # Tells transformers' initializers below to leave what has been read alone.
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        for part in module.modules():
            self._compute_buffers(part)

    def _compute_buffers(self, module: nn.Module) -> None:
        """Fill buffers that no file holds: inverse frequencies and the like.

        By the architecture's initializer of the module, and by that of the decoder, which may hand out what it computes
        for all layers. Raises WorkerError (unsupported_model) for a buffer that neither fills: its number would be
        whatever the memory held before.
        """
        empty = {name for name, buffer in module.named_buffers(recurse=False) if buffer.device.type == "meta"}
        for owner in (module, self.model.get_decoder()) if empty else ():
            found: list[dict[str, Tensor]] = []
            for filling in (0, 1):
                for name in empty:
                    module._buffers[name] = torch.full_like(module.get_buffer(name), filling, device=self.device)
                # Of other layers' buffers, which the decoder's initializer fills too, some were made in this mode.
                with torch.inference_mode():
                    self.model._init_weights(owner)
                found.append({name: module.get_buffer(name) for name in empty})
            empty = {name for name in empty if not torch.equal(found[0][name], found[1][name])}
        if empty:
            raise _cannot_walk(f"no file holds its buffer {min(empty)!r} of {type(module).__name__}")


def _cannot_walk(reason: str) -> WorkerError:
    return WorkerError(
        WorkerErrorCode.UNSUPPORTED_MODEL,
        f"gptq, awq and smoothquant cannot run this model layer by layer: {reason}; use rtn, nf4, fp8 or int8",
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading one layer is no news to who watches standard error."""
    previous = transformers_logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


@contextmanager
def _in_place_of_forward(layers: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _constant(result: Any) -> Callable[..., Any]:
    """A layer's forward that takes anything and returns `result`."""
    return lambda *args, **kwargs: result


def _are_equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_are_equal(value, right[key]) for key, value in left.items())
    return bool(left == right)
