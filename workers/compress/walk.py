"""A model run layer by layer from its files: its skeleton is on the meta device, one layer at a time has memory.

The real modelling code decides what each layer is called with (masks, position embeddings, layer types): one forward
pass through the skeleton, in which every layer only notes its arguments, tells.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from workers.checkpoint.headers import CheckpointHeaders
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.tensors import read_tensor
from workers.compress.plan import decoder_layers
from workers.protocol.errors import WorkerError, WorkerErrorCode


class _EnoughError(Exception):
    """Ends a forward pass whose rest is not wanted."""


class LayerWalk:
    """The decoder layers of a base, each with memory only while it is asked for. All numbers are fp32."""

    def __init__(self, base: Path, headers: CheckpointHeaders, device: torch.device) -> None:
        # Any: transformers leaves half of a model's methods without types.
        skeleton: Any = nn.Module.eval(build_skeleton(base))
        self.model: Any = skeleton.float()
        self.model.requires_grad_(False)
        self.path, self.layers = decoder_layers(self.model)
        self.device = device
        self._headers = headers
        self._mapping: Any = get_model_conversion_mapping(self.model)
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stored_names(self, index: int) -> list[str]:
        """Names of the tensors that the files hold for one layer, in the files' order."""
        short = re.escape(self.path.removeprefix(self.model.base_model_prefix + "."))
        pattern = re.compile(rf"(.+\.)?{short}\.{index}\.")
        return [name for name in self._headers.tensors if pattern.match(name)]

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Iterator[Tensor]:
        """Each sample's input of the first layer, (1, tokens, hidden). token_ids: (samples, tokens).

        Also learns how each layer is called; so it comes before `run`. Raises WorkerError (unsupported_model) for a
        model whose layers see more of the tokens than their hidden states.
        """
        layered = {name for index in range(len(self.layers)) for name in self.stored_names(index)}
        # The head is no part of any hidden state, and the largest tensor of small models.
        outside = [name for name in self._headers.tensors if name not in layered and name != "lm_head.weight"]
        self._materialize(self.model, outside)
        try:
            for number, ids in enumerate(token_ids):
                yield self._note_calls(ids[None].to(self.device), is_first=number == 0)
        finally:
            self.model.to("meta")

    @contextmanager
    def layer(self, index: int, tensors: dict[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """One layer with memory. tensors: take these, by stored name, in place of the base's own."""
        layer = self.layers[index]
        self._materialize(layer, self.stored_names(index), tensors or {})
        try:
            yield layer
        finally:
            layer.to("meta")

    @torch.inference_mode()
    def run(self, index: int, hidden: Tensor) -> Tensor:
        """What layer `index`, which has memory now, makes of one sample's hidden states (1, tokens, hidden)."""
        args, kwargs = self._calls[index]
        output = self.layers[index](hidden, *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def _note_calls(self, ids: Tensor, *, is_first: bool) -> Tensor:
        """The first layer's input for one sample; from the first sample also every layer's other arguments."""
        inputs: list[Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        wanted = len(self.layers) if is_first else 1

        def noting(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            inputs.append(hidden)
            calls.append((args, kwargs))
            if len(calls) == wanted:
                raise _EnoughError
            return hidden

        with _in_place_of_forward(self.layers, noting), suppress(_EnoughError):
            self.model.get_decoder()(input_ids=ids, use_cache=False)
        if is_first:
            self._calls = calls
        elif not _are_equal(calls[0], self._calls[0]):
            raise WorkerError(
                WorkerErrorCode.UNSUPPORTED_MODEL,
                "this model's layers see its tokens directly; calibrated methods cannot walk it: use rtn, nf4 or int8",
            )
        return inputs[0]

    def _materialize(self, module: nn.Module, names: list[str], tensors: dict[str, Tensor] | None = None) -> None:
        """Load the stored tensors, renamed and fused as the architecture wants, then compute the buffers."""
        given = tensors or {}
        stored = {name: given[name] if name in given else read_tensor(self._headers.tensors[name]) for name in names}
        config = LoadStateDictConfig(
            weight_mapping=self._mapping, dtype=torch.float32, device_map={"": str(self.device)}
        )
        convert_and_load_state_dict_in_model(self.model, stored, config)
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(False)
                # Tells transformers' initializers below to leave what has been read alone.
                parameter._is_hf_initialized = True  # type: ignore[attr-defined]
            self._compute_buffers(part)

    def _compute_buffers(self, module: nn.Module) -> None:
        """Fill buffers that no file holds: inverse frequencies and the like."""
        empty = {name for name, buffer in module.named_buffers(recurse=False) if buffer.device.type == "meta"}
        if not empty:
            return
        for name in empty:
            module._buffers[name] = torch.empty_like(module.get_buffer(name), device=self.device)
        self.model._init_weights(module)


@contextmanager
def _in_place_of_forward(layers: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _are_equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_are_equal(value, right[key]) for key, value in left.items())
    return bool(left == right)
