"""The cache object that modelling code sees. It keeps no keys and values: the attention function owns those.

Recurrent layers do keep their states here for the length of one forward; where states rest between steps is the
business of the pool in `recurrent`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from workers.engine.refusal import LaneRefusedError

# Which state: layer index, "conv" or "recurrent", and its number within the layer.
StateKey = tuple[int, str, int]


class PassthroughLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its __init_subclass__ has no types
    """Hands keys and values of the new tokens on, untouched."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The same two tensors."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys: the new tokens only."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """0: positions are always given explicitly."""
        return 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class StateLayer(LinearAttentionCacheLayerMixin):
    """Convolution and recurrent states of one layer, (B, ...) each, loaded before a forward and read after it.

    Unlike transformers' own layer it assigns in place of copying, so the tensors loaded are only changed by kernels
    that update their argument in place.
    """

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to allocate."""

    def forget(self) -> None:
        """Back to the start of a sequence."""
        for number in range(self.number_of_states):
            self.conv_states[number] = self.recurrent_states[number] = None
            self.has_previous_state[number] = False

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Append new inputs (B, channels, L); returns them behind the state, as the convolution wants to see them.

        The state is the last conv_kernel_size inputs; the first call defines that size if the argument does not.
        """
        previous = self.conv_states[state_idx]
        if previous is None:
            size = conv_kernel_size or conv_states.shape[-1]
            visible = pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
        else:
            size = previous.shape[-1]
            visible = torch.cat([previous, conv_states], dim=-1)
        self.conv_states[state_idx] = visible[..., -size:]
        self.has_previous_state[state_idx] = True
        return visible

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Replace the state."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class HybridLayer(StateLayer, PassthroughLayer):  # type: ignore[no-untyped-call, override]  # as transformers' own
    """A layer with attention and a recurrent state side by side."""

    def __init__(self, number_of_states: int = 1) -> None:
        PassthroughLayer.__init__(self)  # type: ignore[no-untyped-call]
        StateLayer.__init__(self, number_of_states)


class PassthroughCache(DynamicCache):
    """One forward's cache: attention layers pass through, recurrent layers carry `states`."""

    def __init__(self, config: PreTrainedConfig) -> None:
        Cache.__init__(self, layers=[_replace(layer) for layer in DynamicCache(config=config).layers])

    @property
    def has_states(self) -> bool:
        """True if the model has recurrent layers."""
        return any(isinstance(layer, StateLayer) for layer in self.layers)

    def states(self) -> dict[StateKey, Tensor]:
        """Every state as the last forward left it, (B, ...) each."""
        return {
            (index, kind, number): state
            for index, layer in enumerate(self.layers)
            if isinstance(layer, StateLayer)
            for kind, stored in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states))
            for number, state in stored.items()
            if state is not None
        }

    def load_states(self, states: Mapping[StateKey, Tensor]) -> None:
        """Begin a forward with these states; without any, begin from nothing."""
        for layer in self.layers:
            if isinstance(layer, StateLayer):
                layer.forget()
        for (index, kind, number), state in states.items():
            layer = self.layers[index]
            assert isinstance(layer, StateLayer)
            (layer.conv_states if kind == "conv" else layer.recurrent_states)[number] = state
            layer.has_previous_state[number] = True


def _replace(layer: object) -> CacheLayerMixin | LinearAttentionCacheLayerMixin | DummyLayer:
    """Our layer in place of one that transformers would use for generation."""
    if isinstance(layer, DummyLayer):
        return layer
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        kind = HybridLayer if isinstance(layer, CacheLayerMixin) else StateLayer
        return kind(layer.number_of_states)
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
        return PassthroughLayer()  # type: ignore[no-untyped-call]
    raise LaneRefusedError(f"the model keeps a {type(layer).__name__} between steps")
