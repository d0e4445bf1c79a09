"""Sample many stories at once from a small Llama teacher on a CPU.

Batch decode of a model with heads of 8 numbers is bound by overhead, not by arithmetic: `generate()` spent most of its
time growing its cache and in attention calls. Here the cache is allocated once, rows that have ended leave the batch,
and a step is a handful of batched products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; top_k bounds the sort that top_p needs."""

    batch_size: int = 384
    max_tokens: int = 480
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 48


class Teacher:
    """A Llama checkpoint without biases, read once and run in fp32 for decode only."""

    def __init__(self, folder: Path, device: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = model.config
        if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
            raise ValueError(f"{folder} is a {config.model_type!r} model; the teacher must be a Llama without biases")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.weights: dict[str, Tensor] = {name: t.detach().to(device) for name, t in model.state_dict().items()}
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.eps: float = config.rms_norm_eps
        self.max_positions: int = config.max_position_embeddings
        self.bos = int(self.tokenizer.bos_token_id)
        ends = model.generation_config.eos_token_id
        # stories260K ends a story with bos: it was trained on stories joined by it
        self.ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=device)
        self.device = device
        theta = config.rope_parameters["rope_theta"]
        inverse = theta ** (-torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim)
        angles = torch.outer(torch.arange(self.max_positions, device=device).float(), inverse).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def new_cache(self, num_rows: int, num_positions: int) -> Tensor:
        """(layers, 2, rows, kv_heads, head_dim, positions) of zeros.

        Positions last: with them next to last, the product with the keys took nine times as long.
        """
        shape = (self.num_layers, 2, num_rows, self.num_kv_heads, self.head_dim, num_positions)
        return torch.zeros(shape, device=self.device)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weights[name], self.eps)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Rotary embedding of x (rows, heads, head_dim), halves paired as in Hugging Face's Llama."""
        half = self.head_dim // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos[position] + turned * self.sin[position]

    def attend(self, x: Tensor, cache: Tensor, layer: str, position: int) -> Tensor:
        """x (rows, hidden) -> (rows, hidden); cache (2, rows, kv_heads, head_dim, positions) is written at position."""
        rows = x.shape[0]
        q, k, v = (functional.linear(x, self.weights[f"{layer}self_attn.{p}_proj.weight"]) for p in "qkv")
        cache[0, ..., position] = self.rotate(k.view(rows, self.num_kv_heads, self.head_dim), position)
        cache[1, ..., position] = v.view(rows, self.num_kv_heads, self.head_dim)
        keys, values = cache[0, ..., : position + 1], cache[1, ..., : position + 1]
        q = self.rotate(q.view(rows, self.num_heads, self.head_dim), position)
        # query heads that share a kv head become rows of one product: (rows, kv_heads, heads_per_kv, head_dim)
        q = q.reshape(rows, self.num_kv_heads, -1, self.head_dim) * self.head_dim**-0.5
        mixed = (q @ keys).softmax(dim=-1) @ values.transpose(-1, -2)
        return functional.linear(mixed.reshape(rows, -1), self.weights[f"{layer}self_attn.o_proj.weight"])

    def step(self, ids: Tensor, cache: Tensor, position: int) -> Tensor:
        """ids (rows,) at one position -> logits (rows, vocab_size)."""
        weights = self.weights
        x = weights["model.embed_tokens.weight"][ids]
        for index in range(self.num_layers):
            layer = f"model.layers.{index}."
            x = x + self.attend(self.norm(x, layer + "input_layernorm.weight"), cache[index], layer, position)
            h = self.norm(x, layer + "post_attention_layernorm.weight")
            gate = functional.silu(functional.linear(h, weights[layer + "mlp.gate_proj.weight"]))
            up = functional.linear(h, weights[layer + "mlp.up_proj.weight"])
            x = x + functional.linear(gate * up, weights[layer + "mlp.down_proj.weight"])
        return functional.linear(self.norm(x, "model.norm.weight"), weights["lm_head.weight"])


def draw(logits: Tensor, sampling: Sampling) -> Tensor:
    """One id per row of logits (rows, vocab_size), from the top_p part of the top_k tokens."""
    top, ids = logits.topk(sampling.top_k, dim=-1)
    weights = (top / sampling.temperature).softmax(dim=-1)
    weights = weights.masked_fill(weights.cumsum(dim=-1) - weights > sampling.top_p, 0.0)
    return ids.gather(1, torch.multinomial(weights, 1)).squeeze(1)


@torch.inference_mode()
def sample_batch(teacher: Teacher, sampling: Sampling) -> Iterator[str]:
    """Yield the stories of one batch that ended with eos within max_tokens; the others are dropped."""
    rows = sampling.batch_size
    limit = min(sampling.max_tokens, teacher.max_positions)
    cache = teacher.new_cache(rows, limit)
    history = torch.full((rows, limit + 1), teacher.bos, device=teacher.device)
    has_ended = torch.zeros(rows, dtype=torch.bool, device=teacher.device)
    for position in range(limit):
        history[:, position + 1] = draw(teacher.step(history[:, position], cache, position), sampling)
        has_ended |= torch.isin(history[:, position + 1], teacher.ends)
        num_ended = int(has_ended.sum())
        # shrinking copies the cache, so it waits until an eighth of the rows have ended
        if num_ended == rows or num_ended * 8 > rows or position == limit - 1:
            for row in history[has_ended, 1 : position + 2]:
                length = int(torch.isin(row, teacher.ends).nonzero()[0])
                yield teacher.tokenizer.decode(row[:length], skip_special_tokens=True).strip()
            if num_ended == rows:
                return
            history, cache, has_ended = history[~has_ended], cache[:, :, ~has_ended], has_ended[~has_ended]
            rows = history.shape[0]
