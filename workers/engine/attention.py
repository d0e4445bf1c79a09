"""Attention of packed rows over the paged pool: the function that transformers' attention layers call.

Modelling code hands over the new tokens' queries, keys and values; this file stores keys and values in their slots and
lets each row look at its own tokens only. Grouped queries meet their key heads through views (no repeated keys, no
`enable_gqa`, which is 15 times slower on the CPU).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.kv_pool import LayerPool
from workers.engine.plan import Keys, StepPlan
from workers.engine.refusal import LaneRefusedError

# What modelling code passes along that changes nothing here: positions are in the keys by now, the window is measured
# from the model's own mask at load, the rest asks for outputs that we do not return or describes training.
IGNORED_ARGUMENTS = frozenset(
    {
        "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "dropout", "max_length_k", "max_length_q",
        "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values",
        "position_embeddings", "position_ids", "return_dict", "sliding_window", "target_dtype", "training", "use_cache",
    }
)  # fmt: skip


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Raise LaneRefusedError if modelling code passes something that would have to change the result."""
    for name, value in arguments.items():
        if value is not None and name not in IGNORED_ARGUMENTS and not (name == "is_causal" and value is True):
            raise LaneRefusedError(f"attention is called with {name}={value!r:.60}")


@dataclass(frozen=True, slots=True)
class Scoring:
    """How queries and keys become weights.

    softcap: scores are squashed to softcap * tanh(score / softcap). sinks: (num_kv_heads, num_groups) extra logits that
    take weight in the softmax and give nothing.
    """

    scale: float
    softcap: float | None
    sinks: Tensor | None

    @property
    def is_plain(self) -> bool:
        """True if torch's own attention computes it."""
        return self.softcap is None and self.sinks is None


class PagedAttention:
    """The attention function of one runner; `plan` says where the tokens of the current step live.

    pools: attention module -> its part of the KV pool. is_batched: decode rows gather their keys into one rectangle and
    take one call (right for a GPU, where launches cost most), else one call per row over a view of the pool.
    """

    def __init__(self, pools: dict[nn.Module, LayerPool], *, is_batched: bool) -> None:
        self.plan: StepPlan | None = None
        self._pools = pools
        self._attend_decodes = _attend_decodes_at_once if is_batched else _attend_decodes_one_by_one

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
        """query: (B, num_heads, L, key_dim), key, value: (B, num_kv_heads, L, dim), B * L packed tokens of the step.

        Returns (B, L, num_heads, value_dim), and no attention weights, as transformers' attention functions do.
        """
        softcap, sinks = arguments.pop("softcap", None), arguments.pop("s_aux", None)
        check_arguments(arguments)
        plan = self.plan
        if attention_mask is not None or plan is None:
            raise LaneRefusedError("attention is called with a mask of the model's own making")
        batch, num_heads, length, key_dim = query.shape
        num_kv_heads, value_dim = value.shape[1], value.shape[3]
        pool = self._pools[module]
        pool.write(
            plan.slots,
            key.transpose(1, 2).reshape(-1, num_kv_heads, key_dim),
            value.transpose(1, 2).reshape(-1, num_kv_heads, value_dim),
        )
        # query head h looks at key head h // num_groups
        queries = query.transpose(1, 2).reshape(-1, num_kv_heads, num_heads // num_kv_heads, key_dim)
        scoring = Scoring(
            key_dim**-0.5 if scaling is None else scaling,
            softcap,
            None if sinks is None else sinks.reshape(num_kv_heads, -1),
        )
        parts = self._attend_decodes(queries[: plan.num_decodes], pool, plan, scoring) if plan.num_decodes else []
        parts += _attend_chunks(queries, pool, plan, scoring)
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        return output.reshape(batch, length, num_heads, value_dim), None


def _attend_decodes_one_by_one(queries: Tensor, pool: LayerPool, plan: StepPlan, scoring: Scoring) -> list[Tensor]:
    """queries: (B, num_kv_heads, num_groups, key_dim) -> B tensors (1, num_kv_heads, num_groups, value_dim)."""
    keys = plan.decode_keys(pool.window)
    return [
        attend(query, *_keys_and_values(pool, row), None, scoring, trailing=1)
        for query, row in zip(torch.split(queries, 1), keys, strict=True)
    ]


def _attend_decodes_at_once(queries: Tensor, pool: LayerPool, plan: StepPlan, scoring: Scoring) -> list[Tensor]:
    """queries: (B, num_kv_heads, num_groups, key_dim) -> one tensor (B, num_kv_heads, num_groups, value_dim)."""
    padded = plan.padded_decode_keys(pool.window)
    keys, values = (store[padded.index].transpose(1, 2) for store in (pool.keys, pool.values))
    return [attend(queries, keys, values, padded.mask, scoring, trailing=1)]


def _attend_chunks(queries: Tensor, pool: LayerPool, plan: StepPlan, scoring: Scoring) -> list[Tensor]:
    """queries: (N, num_kv_heads, num_groups, key_dim) -> a (tokens, num_kv_heads, num_groups, value_dim) per chunk."""
    parts: list[Tensor] = []
    all_keys = plan.chunk_keys(pool.window, always_mask=not scoring.is_plain) if plan.chunks else []
    of_row: Keys | None = None
    for chunk, of_chunk in zip(plan.chunks, all_keys, strict=True):
        if of_chunk.of_row is not of_row:
            of_row = of_chunk.of_row
            stores = _keys_and_values(pool, of_row)
        keys, values = (store.narrow(2, of_chunk.offset, of_chunk.length) for store in stores)
        query = queries[chunk.first : chunk.first + chunk.num_tokens]
        if chunk.num_tokens == 1:
            # as a decode row does it, which is what a single token is where a prompt was cut before it
            parts.append(attend(query, keys, values, None, scoring, trailing=1))
            continue
        # (num_kv_heads, num_groups, tokens, key_dim): key heads are the batch, and groups share one by a stride of 0
        query = query.permute(1, 2, 0, 3)
        num_groups = query.shape[1]
        keys, values = (store.transpose(0, 1).expand(-1, num_groups, -1, -1) for store in (keys, values))
        parts.append(attend(query, keys, values, of_chunk.mask, scoring, trailing=2).permute(2, 0, 1, 3))
    return parts


def _keys_and_values(pool: LayerPool, row: Keys) -> tuple[Tensor, Tensor]:
    """Both (1, num_kv_heads, length, dim): views where the row's pages are a run, copies where they are scattered."""
    if row.index is None:
        return (
            pool.heads_first_keys.narrow(2, row.first, row.length),
            pool.heads_first_values.narrow(2, row.first, row.length),
        )
    return (
        pool.keys.index_select(0, row.index).transpose(0, 1).unsqueeze(0),
        pool.values.index_select(0, row.index).transpose(0, 1).unsqueeze(0),
    )


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scoring: Scoring, *, trailing: int
) -> Tensor:
    """Softmax attention. query: (.., .., M, key_dim), keys: (.., .., L, key_dim), values: (.., .., L, value_dim).

    trailing: dims of the scores behind (num_kv_heads, num_groups): 1 where M is the groups of one decode position, 2
    where M is the positions of a chunk. mask: additive, broadcastable to (.., .., M, L); None: a decode position sees
    all keys, query i of a chunk the keys up to i.
    """
    if scoring.is_plain:
        is_causal = mask is None and trailing == 2
        return scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal, scale=scoring.scale)
    # fp32 as in the models' own eager code: a bf16 softmax loses the tail, and tanh saturates
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores = scores + mask
    if scoring.sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sinks = scoring.sinks.float()[(..., *[None] * trailing)]
        highest = torch.maximum(scores.amax(dim=-1, keepdim=True), sinks)
        weights = torch.exp(scores - highest)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + torch.exp(sinks - highest))
    return torch.matmul(weights.to(values.dtype), values)
