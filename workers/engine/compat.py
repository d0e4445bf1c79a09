"""The compat lane: each row by itself, with the cache that the model itself would use. Slow, and right for any model.

Three ways to remember, from fast to certain: with the model's own cache, in prompts of any cut; the same with whole
prompts only; with no cache at all, where every token is computed anew from the first on.
"""

import inspect
from collections.abc import Sequence as Many
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from workers.engine.kv_pool import PAGE_SIZE
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Row, Sequence

# Names under which models take and return what they remember.
CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state", "rnn_state")


class Memory(StrEnum):
    """How a sequence's past reaches its next row."""

    CACHE = "cache"
    WHOLE_PROMPTS = "whole prompts"
    NONE = "none"


@dataclass(slots=True)
class _Past:
    """A model's cache and the number of tokens in it."""

    cache: Any
    num_tokens: int


class CompatRunner:
    """Rows in, logits out, for models that fit no other lane.

    num_pages only bounds how many tokens the scheduler lets in; the caches are the model's own.
    """

    def __init__(self, model: PreTrainedModel, *, num_pages: int, memory: Memory) -> None:
        self.geometry = CacheGeometry(
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            supports_prefix_cache=False,
            supports_chunks=memory is not Memory.WHOLE_PROMPTS,
        )
        self._model = model
        self._memory = memory
        self._parameters = inspect.signature(model.forward).parameters
        self._cache_argument = next((name for name in CACHE_ARGUMENTS if name in self._parameters), None)
        self._pasts: dict[Sequence, _Past] = {}
        self.vocab_size = self._measured_vocab_size()

    @torch.inference_mode()
    def forward(self, rows: Many[Row]) -> list[Tensor]:
        """See `Runner`. A row whose past is missing or has moved on (its step is run again) starts from token 0."""
        return [self._forward_row(row) for row in rows]

    def release(self, sequence: Sequence) -> None:
        """See `Runner`."""
        self._pasts.pop(sequence, None)

    def _forward_row(self, row: Row) -> Tensor:
        # taken out while the forward runs: after a raise nobody knows what the cache holds
        past = self._pasts.pop(row.sequence, None)
        if past is None or past.num_tokens != row.start:
            past = _Past(self._new_cache(), 0)
        logits, cache = self._call(row.sequence.token_ids(past.num_tokens, row.end), past)
        if self._memory is not Memory.NONE:
            self._pasts[row.sequence] = _Past(cache, row.end)
        return logits[-row.num_tokens :] if row.wants_all_logits else logits[-1:]

    def _new_cache(self) -> Any:
        """What `generate` would begin with; None lets the model begin by itself."""
        if self._memory is Memory.NONE or self._cache_argument != "past_key_values":
            return None
        return DynamicCache(config=self._model.config)

    def _call(self, token_ids: list[int], past: _Past) -> tuple[Tensor, Any]:
        """Logits (len(token_ids), vocab_size) and the cache after these tokens."""
        device = self._model.device
        end = past.num_tokens + len(token_ids)
        available = {
            "attention_mask": torch.ones(1, end, dtype=torch.long, device=device),
            "position_ids": torch.arange(past.num_tokens, end, device=device)[None],
            "use_cache": self._memory is not Memory.NONE,
            "return_dict": True,
        }
        arguments = {name: value for name, value in available.items() if name in self._parameters}
        if self._cache_argument is not None and past.cache is not None:
            arguments[self._cache_argument] = past.cache
        output = self._model(torch.tensor([token_ids], device=device), **arguments)
        return output.logits[0], getattr(output, self._cache_argument or "", None)

    def _measured_vocab_size(self) -> int:
        with torch.inference_mode():
            logits, _ = self._call([0], _Past(self._new_cache(), 0))
        return logits.shape[-1]
