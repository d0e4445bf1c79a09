"""Learn a model's shapes and windows from one short forward, before any pool is allocated.

The attention window is measured, not read from a config: modelling code describes its mask as a function of two
positions, and that function is evaluated at the far end of the context. So a window of 4,096 or a chunked mask is found
by eight tokens, in any architecture.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.engine.attention import check_arguments
from workers.engine.cache import PassthroughCache, StateKey
from workers.engine.kv_pool import AttentionShape
from workers.engine.model_call import ModelCall
from workers.engine.refusal import LaneRefusedError

PROBE_TOKENS = 8
_numbers = itertools.count()


@dataclass(slots=True, kw_only=True)
class ModelFacts:
    """What the probe found.

    attention: each attention module and what it stores. states: shape (without the batch) and dtype of every recurrent
    state. vocab_size: width of the logits.
    """

    attention: dict[nn.Module, AttentionShape] = field(default_factory=dict)
    states: dict[StateKey, tuple[torch.Size, torch.dtype]] = field(default_factory=dict)
    vocab_size: int = 0

    @property
    def attention_dtype(self) -> torch.dtype:
        """Of queries, keys and values, and so of masks."""
        return next((shape.dtype for shape in self.attention.values()), torch.float32)


def register_attention(attention: Callable[..., object], mask: Callable[..., object] | None = None) -> str:
    """Make `attention` known to transformers; returns the name for `set_attn_implementation`.

    Without a mask function, modelling code builds no mask at all and passes None. The registry is never emptied, so it
    gets a weak reference: a refused lane must not keep its pools.
    """
    name = f"slimserve_{next(_numbers)}"
    ALL_ATTENTION_FUNCTIONS.register(name, weakref.proxy(attention))
    if mask is not None:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)
    return name


def probe(model: PreTrainedModel, max_model_len: int) -> ModelFacts:
    """Run eight tokens through `model` with an attention that only takes notes.

    Raises LaneRefusedError where ours cannot stand in for the model's own attention and cache, and whatever the model
    raises. The model's attention implementation is put back.
    """
    facts, notes = ModelFacts(), _Notes(max_model_len)
    cache = PassthroughCache(model.config)
    call = ModelCall(model)
    watcher = weakref.proxy(notes)
    name = register_attention(notes, lambda **arguments: watcher.mask(**arguments))
    with attention_set(model, name), torch.inference_mode():
        positions = call.tensor(list(range(PROBE_TOKENS)))
        logits = call(
            positions[None] % model.config.get_text_config().vocab_size, positions[None], cache, positions[-1:]
        )
    states = cache.states()
    if not notes.shapes and not states:
        raise LaneRefusedError(f"{type(model).__name__} never calls its attention function")
    for key, state in states.items():
        if state.shape[0] != 1:
            raise LaneRefusedError(f"state {key} has shape {tuple(state.shape)} for a batch of one")
        facts.states[key] = (state.shape[1:], state.dtype)
    facts.attention, facts.vocab_size = notes.shapes, logits.shape[-1]
    return facts


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Switch the attention of `model`. Raises LaneRefusedError where its layers do not ask by name."""
    if model.config._attn_implementation == name:
        return
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise LaneRefusedError(f"{type(model).__name__} has no exchangeable attention")


@contextmanager
def attention_set(model: PreTrainedModel, name: str) -> Iterator[None]:
    """`set_attention` for the length of a block."""
    before = model.config._attn_implementation
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, before)


class _Notes:
    """Stands in for attention and mask creation during the probe."""

    def __init__(self, max_model_len: int) -> None:
        self.shapes: dict[nn.Module, AttentionShape] = {}
        self._max_model_len = max_model_len
        self._windows: list[int | None] = []

    def mask(self, *, batch_size: int, q_length: int, kv_length: int, mask_function: Any, **_: Any) -> Tensor:
        """Measure the window of this mask; returns a mask that is no mask but says which window it was, everywhere.

        The number survives the slicing that modelling code does on its way to the attention function.
        """
        self._windows.append(measured_window(mask_function, self._max_model_len))
        return torch.full((batch_size, 1, q_length, kv_length), float(len(self._windows) - 1))

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """Note the shapes of one layer; returns zeros."""
        window = arguments.get("sliding_window")
        for known in ("softcap", "s_aux"):
            arguments.pop(known, None)
        check_arguments(arguments)
        if module in self.shapes:
            raise LaneRefusedError(f"{type(module).__name__} attends twice in one forward")
        if key.shape[2] != query.shape[2]:
            raise LaneRefusedError(f"{type(module).__name__} attends to tokens other than its own")
        if attention_mask is not None:
            tags = torch.unique(attention_mask).tolist()
            if len(tags) != 1 or tags[0] not in range(len(self._windows)):
                raise LaneRefusedError(f"{type(module).__name__} changes the mask that it is given")
            window = self._windows[int(tags[0])]
        self.shapes[module] = AttentionShape(
            num_kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3], dtype=key.dtype, window=window
        )
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def measured_window(mask_function: Callable[..., Tensor], max_model_len: int) -> int | None:
    """How many tokens a query sees under a transformers mask function, itself included; None = all before it.

    mask_function(batch, head, query position, key position) -> bool. Looks at the first and the last positions of the
    context and at powers of two between. Raises LaneRefusedError unless they fit one causal window.
    """
    last = max_model_len - 1
    positions = sorted({0, last, *(2**i + d for i in range(last.bit_length()) for d in (-1, 0) if 2**i + d <= last)})
    query = torch.tensor(positions)[:, None]
    key = torch.arange(max_model_len)
    nothing = torch.zeros(1, 1, dtype=torch.long)
    visible = torch.as_tensor(mask_function(nothing, nothing, query, key)).expand(len(positions), max_model_len)
    counts = visible.sum(dim=1)
    window = int(counts[-1])
    expected = (key <= query) & (key > query - window)
    if not torch.equal(visible, expected):
        raise LaneRefusedError("the model's mask is neither causal nor a sliding window")
    return None if window >= max_model_len else window
