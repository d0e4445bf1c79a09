"""What is kept of a base's distributions so that its variants can be compared with it while it is not loaded.

Per scored position: the base's k likeliest tokens with their log-probabilities, and the log of the mass of all other
tokens together: 8 k + 12 bytes with the first choice and the log-probability of what came, in place of 4 V.

Comparing through this is comparing two distributions over k + 1 outcomes: the k tokens, and "any other". By the data
processing inequality (lumping outcomes together can only bring distributions nearer) the divergence found is a lower
bound of the full one, in both directions, and equal to it where k + 1 >= V.
"""

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Of the base, at T scored positions: top_ids (T, k) int32, top (T, k) and tail (T,) natural-log probabilities of
    these tokens and of all others together, nll (T,) of the text's own tokens; all fp32, on the CPU. first: (T,) int32,
    the greedy choice: of equal logits, which bf16 has often, argmax and topk may name different tokens.
    """

    top_ids: Tensor
    top: Tensor
    tail: Tensor
    first: Tensor
    nll: Tensor


def summarize(log_probs: Tensor, targets: Tensor, top_k: int) -> Reference:
    """Keep the top_k likeliest tokens. log_probs: (T, V) fp32; targets: (T,), the tokens that came next."""
    top, ids = log_probs.topk(min(top_k, log_probs.shape[1]), dim=1)
    nll = -log_probs.gather(1, targets[:, None])[:, 0]
    return Reference(
        top_ids=ids.to(torch.int32),
        top=top,
        tail=_log_rest(log_probs, ids),
        first=log_probs.argmax(dim=1).to(torch.int32),
        nll=nll,
    )


def join(parts: list[Reference]) -> Reference:
    """One reference of the parts' positions, in order."""
    return Reference(
        top_ids=torch.cat([part.top_ids for part in parts]),
        top=torch.cat([part.top for part in parts]),
        tail=torch.cat([part.tail for part in parts]),
        first=torch.cat([part.first for part in parts]),
        nll=torch.cat([part.nll for part in parts]),
    )


def lumped_kl(reference: Reference, variant: Tensor) -> tuple[Tensor, Tensor]:
    """KL(base || variant) and KL(variant || base) over the k kept tokens and "any other", nats: two (T,), fp64.

    variant: (T, V) natural-log probabilities. Lower bounds of the divergences over all V tokens.
    """
    ids = reference.top_ids.long()
    p = torch.cat([reference.top, reference.tail[:, None]], dim=1).to(torch.float64)
    q = torch.cat([variant.gather(1, ids), _log_rest(variant, ids)[:, None]], dim=1).to(torch.float64)
    return _kl(p, q), _kl(q, p)


def cache_file(folder: Path, base_fingerprint: str, token_ids: Tensor, settings: tuple[int, ...]) -> Path:
    """Where the base's numbers for this text lie. settings: window, stride and top_k, which they depend on."""
    digest = hashlib.sha256(f"{_VERSION} {base_fingerprint} {settings} ".encode())
    digest.update(token_ids.to(torch.int32).numpy().tobytes())
    return folder / f"{digest.hexdigest()}.safetensors"


def load_reference(file: Path) -> Reference | None:
    """What was saved; None if there is nothing, or nothing whole."""
    try:
        return Reference(**load_file(file))
    except (FileNotFoundError, SafetensorError, TypeError):
        return None


def save_reference(file: Path, reference: Reference) -> None:
    """Write it under another name, then rename: a reader sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    tensors = {field.name: getattr(reference, field.name).contiguous() for field in fields(reference)}
    save_file(tensors, partial)
    os.replace(partial, file)


def _log_rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """ln of the mass of every token but ids: (T,), -inf if there is none. Summed itself: 1 - sum(top) cancels."""
    rest = log_probs.scatter(1, ids.long(), -torch.inf)
    return torch.logsumexp(rest.to(torch.float64), dim=1).to(torch.float32)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(dim=1)
