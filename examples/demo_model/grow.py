"""Widen a small Llama without changing what it says, so that training starts from a model that knows English.

The teacher's sizes (hidden 64, heads of 8, intermediate 172) are too small for int4 groups of 128. Every widened matrix
keeps the old numbers; of each pair of matrices that the new numbers pass through, one starts at zero, so that the
function stays the same, and the other at random, so that both learn (Net2Net, arXiv:1511.05641).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

NEW_STD = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the grown model; each must be at least the small model's, head_dim a multiple of it."""

    hidden_size: int
    intermediate_size: int
    head_dim: int


def grown_config(small: LlamaConfig, sizes: Sizes, special_ids: dict[str, int], vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=small.num_hidden_layers,
        num_attention_heads=small.num_attention_heads,
        num_key_value_heads=small.num_key_value_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=small.max_position_embeddings,
        # the mean square is over more numbers, the new ones zero: eps shrinks with it
        rms_norm_eps=small.rms_norm_eps * small.hidden_size / sizes.hidden_size,
        rope_parameters=dict(small.rope_parameters),
        tie_word_embeddings=True,
        **special_ids,
    )


def widen(old: Tensor, shape: torch.Size, new_std: float) -> Tensor:
    """old in the upper left corner of a matrix of normal numbers with standard deviation new_std."""
    wide = torch.randn(shape) * new_std
    wide[: old.shape[0], : old.shape[1]] = old
    return wide


def widen_heads(old: Tensor, num_heads: int, old_dim: int, new_dim: int, new_rows: float) -> Tensor:
    """(num_heads * old_dim, n) -> (num_heads * new_dim, n), each pair of rotary rows at its own frequency.

    Pair i of the small head turns by theta ** (-i / (old_dim / 2)), which is pair i * stride of the large one.
    """
    stride, half = new_dim // old_dim, old_dim // 2
    wide = torch.randn(num_heads, new_dim, old.shape[1]) * new_rows
    heads = old.view(num_heads, old_dim, -1)
    wide[:, : new_dim // 2 : stride], wide[:, new_dim // 2 :: stride] = heads[:, :half], heads[:, half:]
    return wide.reshape(num_heads * new_dim, -1)


def columns_as_heads(old: Tensor, num_heads: int, new_dim: int) -> Tensor:
    """o_proj (n, num_heads * old_dim) -> (n, num_heads * new_dim), laid out as widen_heads does, new columns zero."""
    old_dim = old.shape[1] // num_heads
    return widen_heads(old.T.contiguous(), num_heads, old_dim, new_dim, 0.0).T.contiguous()


def grow(small: LlamaForCausalLM, config: LlamaConfig, rows: list[int | None]) -> LlamaForCausalLM:
    """A model of `config` that computes what `small` does; rows[i] is the old id of the new token i, None if new."""
    model = LlamaForCausalLM(config)
    old, new = small.state_dict(), model.state_dict()
    shrink = (small.config.hidden_size / config.hidden_size) ** 0.5
    old_dim, dim = small.config.head_dim, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    for name, tensor in new.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensor.zero_()
            mean = old[name].mean(dim=0)
            picked = torch.stack([mean if row is None else old[name][row] for row in rows])
            tensor[:, : picked.shape[1]] = picked
            continue
        weight = old[name]
        if weight.dim() == 1:
            tensor.fill_(float(weight.mean()) * shrink)
            tensor[: len(weight)] = weight * shrink
            continue
        if "q_proj" in name:
            # zero rows in q against random rows in k; the softmax scale 1 / sqrt(head_dim) is undone in q
            weight = widen_heads(weight * (dim / old_dim) ** 0.5, heads, old_dim, dim, 0.0)
        elif "k_proj" in name or "v_proj" in name:
            weight = widen_heads(weight, kv_heads, old_dim, dim, NEW_STD)
        elif "o_proj" in name:
            weight = columns_as_heads(weight, heads, dim)
        writes = "o_proj" in name or "down_proj" in name
        tensor.copy_(widen(weight, tensor.shape, 0.0 if writes else NEW_STD))
    model.load_state_dict(new)
    return model
