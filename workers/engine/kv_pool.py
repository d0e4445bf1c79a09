"""The paged key/value pool: one pair of tensors per attention layer, a slot per token.

Slot = page * page_size + offset. A page belongs to all layers at once, so one block table serves the whole model.
This file knows shapes and bytes; which page belongs to whom is the scheduler's business.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PAGE_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What one attention layer stores per token, and how far back it looks.

    key_dim and value_dim differ in multi-head latent attention. window: a query sees itself and window - 1 tokens
    before it; None = all of them.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None = None

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class LayerPool:
    """Keys and values of one attention layer.

    keys: (num_slots, num_kv_heads, key_dim), values: (num_slots, num_kv_heads, value_dim). `heads_first_*` are the
    same memory seen as (1, num_kv_heads, num_slots, dim), so that a run of pages is one `narrow` away from attention.
    """

    __slots__ = ("heads_first_keys", "heads_first_values", "keys", "values", "window")

    def __init__(self, shape: AttentionShape, num_slots: int, device: torch.device) -> None:
        self.window = shape.window
        # empty, not zeros: on the CPU pages that are never written then cost no memory
        self.keys = torch.empty(num_slots, shape.num_kv_heads, shape.key_dim, dtype=shape.dtype, device=device)
        self.values = torch.empty(num_slots, shape.num_kv_heads, shape.value_dim, dtype=shape.dtype, device=device)
        self.heads_first_keys = self.keys.transpose(0, 1).unsqueeze(0)
        self.heads_first_values = self.values.transpose(0, 1).unsqueeze(0)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store one key and value per slot. slots: (N,) int64; keys, values: (N, num_kv_heads, dim)."""
        self.keys.index_copy_(0, slots, keys)
        self.values.index_copy_(0, slots, values)


def pages_that_fit(shapes: list[AttentionShape], kv_cache_bytes: int, max_model_len: int, max_num_seqs: int) -> int:
    """Pages that `kv_cache_bytes` hold, but never more than all sequences at full length could use.

    A model without attention layers stores nothing per token: it gets every page it could ask for.
    """
    useful = max_num_seqs * -(-max_model_len // PAGE_SIZE)
    bytes_per_page = PAGE_SIZE * sum(shape.bytes_per_token for shape in shapes)
    return useful if bytes_per_page == 0 else min(useful, kv_cache_bytes // bytes_per_page)
