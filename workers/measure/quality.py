"""How far a variant's next-token distributions are from its base's."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Rows that are turned to fp64 at a time: 64 x 150,000 x 8 bytes = 77 MB, twice.
_ROWS = 64


@torch.inference_mode()
def window_logits(model: PreTrainedModel, windows: Iterable[Tensor]) -> Iterator[Tensor]:
    """One (T, V) tensor for each window of token ids (T,), int64, each read from an empty context."""
    for ids in windows:
        yield model(input_ids=ids[None].to(model.device), use_cache=False).logits[0]


def log_probs(logits: Iterable[Tensor]) -> Tensor:
    """Natural-log probabilities of the next token at every position of all windows: (T, V), fp32, on the CPU.

    logits: of each window, (T, V).
    """
    return torch.cat([torch.log_softmax(one.to(torch.float32), dim=-1).cpu() for one in logits])


def kl_divergence(base: Tensor, variant: Tensor) -> Tensor:
    """KL(p || q) = sum_v p(v) (ln p(v) - ln q(v)), in nats, one per position.

    base: ln p, variant: ln q, both (T, V), floating point, from log_softmax. Returns (T,), fp64. Summed in fp64: the
    terms cancel down to 1e-6 and less where two models nearly agree. Tokens with p = 0 add nothing.
    """
    parts = []
    for start in range(0, base.shape[0], _ROWS):
        p = base[start : start + _ROWS].to(torch.float64)
        q = variant[start : start + _ROWS].to(torch.float64)
        terms = p.exp() * (p - q)
        parts.append(torch.where(p == -torch.inf, 0.0, terms).sum(dim=-1))
    return torch.cat(parts)


def top1_agreement(base: Tensor, variant: Tensor) -> float:
    """Share of positions at which both would pick the same token greedily. base, variant: (T, V)."""
    return float((base.argmax(dim=-1) == variant.argmax(dim=-1)).to(torch.float64).mean())


@torch.inference_mode()
def greedy_tokens(model: PreTrainedModel, prompt_ids: Sequence[int], num_tokens: int) -> list[int] | None:
    """The next num_tokens tokens by argmax, without a cache; None if a logit on the way is NaN or infinite."""
    tokens = list(prompt_ids)
    for _ in range(num_tokens):
        logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0, -1]
        if not torch.isfinite(logits).all():
            return None
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt_ids) :]
