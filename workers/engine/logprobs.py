"""Log-probabilities that a sequence reports: of the model's own distribution, before penalties, bias and temperature.

Computed once in fp32 and never rounded, so that the chosen token's value equals the same token's among the
alternatives as a float: clients test greediness by that equality.
"""

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from workers.protocol.messages import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Many[int], num_top: int) -> list[TokenLogprob]:
    """One entry per row.

    logits: (num_rows, vocab_size), any floating point, finite or -inf. token_ids: the token of each row whose
    log-probability is wanted. num_top: alternatives per row, by descending log-probability, then ascending id.
    """
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    index = torch.tensor(token_ids, device=logits.device).unsqueeze(1)
    chosen = logprobs.gather(1, index).squeeze(1).tolist()
    tops = _top_tokens(logprobs, num_top) if num_top else [[] for _ in token_ids]
    return [
        TokenLogprob(token_id=token_id, logprob=logprob, top=top)
        for token_id, logprob, top in zip(token_ids, chosen, tops, strict=True)
    ]


def _top_tokens(logprobs: Tensor, num_top: int) -> list[list[tuple[int, float]]]:
    """The most likely tokens of each row. topk may return any of several equal values, so ties are sorted by id."""
    num_top = min(num_top, logprobs.shape[-1])
    threshold = logprobs.topk(num_top, dim=-1).values[:, -1:]
    tops: list[list[tuple[int, float]]] = []
    for row, is_candidate in zip(logprobs, logprobs >= threshold, strict=True):
        ids = is_candidate.nonzero().squeeze(1)
        pairs = zip(ids.tolist(), row[ids].tolist(), strict=True)
        tops.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:num_top])
    return tops
