"""Picks the next token of every sequence: a pure function of (logits, parameters, u).

u is a counter-based hash of (seed, position) and every operation here works on each row for itself, so one seed
gives one text: alone, in any batch, after a preemption and after a restart. Only operations along the last
dimension are used whose result for a row cannot depend on how many rows there are (no floating-point `sum`: for a
single row torch splits it over threads and rounds differently).

Order: grammar; repetition, presence and frequency penalties; logit_bias; min_tokens; temperature; top_k; top_p; min_p;
then the inverse of the cumulative distribution, in order of token ids, at u.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.engine.grammar import allowed_tokens
from workers.engine.logprobs import token_logprobs
from workers.engine.sequence import Sequence
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import RequestError, TokenLogprob
from workers.protocol.specs import SamplingParams

# OpenAI: values of -100 should result in a ban.
_BAN_BIAS = -100.0
# top_p looks at this many of the largest probabilities before it sorts the whole vocabulary.
_NUM_NUCLEUS_CANDIDATES = 1024
# Below it a temperature is greedy: dividing by it would only tell ties apart by rounding errors.
MIN_TEMPERATURE = 1e-5
_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """The next token of one sequence, or why it has none. Exactly one of token_id and error is set."""

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    error: RequestError | None = None


NONFINITE = Pick(
    error=RequestError(
        code=WorkerErrorCode.NONFINITE_LOGITS,
        message="the model produced NaN or infinite logits for this request; try another variant or dtype",
    )
)
_NO_VALID_TOKEN = Pick(
    error=RequestError(
        code=WorkerErrorCode.NO_VALID_TOKEN,
        message="logit_bias, min_tokens, stop tokens and the output's form together ban every token; relax one of them",
    )
)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and depends on nothing else: two rounds of SplitMix64's finalizer.

    48 bits: then u times any fp64 total stays below the total.
    """
    state = _mix(_mix(seed & _MASK_64) + 0x9E3779B97F4A7C15 * (position + 1))
    return (state >> 16) / 2.0**48


def sample(logits: Tensor, sequences: Many[Sequence], eos_token_ids: frozenset[int]) -> list[Pick]:
    """One pick per row.

    logits: (num_rows, vocab_size), floating point, of the last position of each sequence; left unchanged.
    """
    best, best_ids = logits.max(dim=-1)
    # NaN and +inf survive the maximum; single -inf are a model's own masks and harmless.
    is_finite: list[bool] = torch.isfinite(best).tolist()
    token_ids: list[int | None] = best_ids.tolist()
    shaped = [row for row, sequence in enumerate(sequences) if is_finite[row] and not _is_plain(sequence)]
    if shaped:
        chosen = _sample_shaped(logits[shaped], [sequences[row] for row in shaped], eos_token_ids)
        for row, token_id in zip(shaped, chosen, strict=True):
            token_ids[row] = token_id
    return [
        _pick(logits[row : row + 1], sequence, token_ids[row]) if is_finite[row] else NONFINITE
        for row, sequence in enumerate(sequences)
    ]


def stop_ids(params: SamplingParams, eos_token_ids: frozenset[int]) -> frozenset[int]:
    """The tokens that end a sequence with these parameters. Nothing follows the end of a grammar."""
    own = frozenset(params.stop_token_ids)
    return own if params.ignore_eos and params.grammar is None else own | eos_token_ids


def _mix(state: int) -> int:
    """SplitMix64's output function (Steele, Lea and Flood, 2014): a bijection of 64-bit integers."""
    state = (state + 0x9E3779B97F4A7C15) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return state ^ (state >> 31)


def _is_plain(sequence: Sequence) -> bool:
    """True if the argmax of the model's own logits is the answer."""
    params = sequence.params
    return (
        params.temperature < MIN_TEMPERATURE
        and params.repetition_penalty == 1
        and params.presence_penalty == 0
        and params.frequency_penalty == 0
        and not params.logit_bias
        and sequence.matcher is None
        and not _is_below_min_tokens(sequence)
    )


def _is_below_min_tokens(sequence: Sequence) -> bool:
    return len(sequence.output_ids) < sequence.params.min_tokens


def _pick(logits: Tensor, sequence: Sequence, token_id: int | None) -> Pick:
    if token_id is None:
        return _NO_VALID_TOKEN
    num_top = sequence.params.logprobs
    if num_top is None:
        return Pick(token_id=token_id)
    return Pick(token_id=token_id, logprob=token_logprobs(logits, [token_id], num_top)[0])


def _sample_shaped(logits: Tensor, sequences: Many[Sequence], eos_token_ids: frozenset[int]) -> list[int | None]:
    """Token per row, None where every token is banned. logits: (num_rows, vocab_size), overwritten if fp32."""
    scores = logits.float()
    _keep_grammatical(scores, sequences, eos_token_ids)
    for row, sequence in zip(scores, sequences, strict=True):
        _adjust(row, sequence, eos_token_ids)
    best, best_ids = scores.max(dim=-1)
    has_token = (best > -torch.inf).tolist()
    token_ids = [token_id if has_token[row] else None for row, token_id in enumerate(best_ids.tolist())]
    drawn = [
        row
        for row, sequence in enumerate(sequences)
        if has_token[row] and sequence.params.temperature >= MIN_TEMPERATURE
    ]
    if drawn:
        params = [sequences[row].params for row in drawn]
        us = [uniform(sequences[row].params.seed, len(sequences[row].output_ids)) for row in drawn]
        for row, token_id in zip(drawn, _draw(scores[drawn], params, us), strict=True):
            token_ids[row] = token_id
    return token_ids


def _keep_grammatical(scores: Tensor, sequences: Many[Sequence], eos_token_ids: frozenset[int]) -> None:
    """Ban what a grammar does not allow; where it may end, every stop token may end it.

    Where it may not, an end token that it takes for a part of the output would end it all the same: it is banned while
    there is another way on.
    """
    matchers = {row: sequence.matcher for row, sequence in enumerate(sequences) if sequence.matcher is not None}
    if not matchers:
        return
    is_allowed = allowed_tokens(list(matchers.values()), scores.shape[-1], scores.device)
    goes_on = is_allowed.clone()
    goes_on[:, list(eos_token_ids)] = False
    # chosen on the device, which need not be waited for
    is_allowed = torch.where(goes_on.any(-1, keepdim=True), goes_on, is_allowed)
    for place, (row, matcher) in enumerate(matchers.items()):
        if matcher.may_end:
            is_allowed[place, list(stop_ids(sequences[row].params, eos_token_ids))] = True
    rows = list(matchers)
    scores[rows] = scores[rows].masked_fill(~is_allowed, -torch.inf)


def _adjust(scores: Tensor, sequence: Sequence, eos_token_ids: frozenset[int]) -> None:
    """Penalties, bias and min_tokens of one row, in place. scores: (vocab_size,) fp32.

    The repetition penalty (CTRL, arXiv:1909.05858) sees prompt and output, the other two only the output, as
    OpenAI's do.
    """
    params = sequence.params
    if params.repetition_penalty != 1:
        seen = torch.tensor(sequence.prompt_ids + sequence.output_ids, device=scores.device)
        old = scores[seen]
        scores[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.output_ids:
        output_ids = torch.tensor(sequence.output_ids, device=scores.device)
        ids, counts = output_ids.unique(return_counts=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token_id, bias in params.logit_bias.items():
        scores[token_id] += bias if bias > _BAN_BIAS else -torch.inf
    _ban_ends(scores, sequence, eos_token_ids)


def _ban_ends(scores: Tensor, sequence: Sequence, eos_token_ids: frozenset[int]) -> None:
    """Stop tokens before min_tokens, and the end of a grammar where EOS is to be ignored.

    Unless a grammar allows nothing else: what is complete ends.
    """
    params = sequence.params
    if _is_below_min_tokens(sequence):
        ends = list(stop_ids(params, eos_token_ids))
    elif params.ignore_eos and sequence.matcher is not None:
        ends = list(eos_token_ids)
    else:
        return
    banned = scores[ends]
    scores[ends] = -torch.inf
    if sequence.matcher is not None and not bool((scores > -torch.inf).any()):
        scores[ends] = banned


def _draw(scores: Tensor, params: Many[SamplingParams], us: Many[float]) -> list[int]:
    """One token id per row at the u-quantile of its filtered distribution.

    scores: (num_rows, vocab_size) fp32, at least one finite score per row, overwritten.
    """
    # The maximum goes first: a small temperature must not overflow.
    scores -= scores.amax(dim=-1, keepdim=True)
    scores /= _column([p.temperature for p in params], scores)
    _keep_top_k(scores, params)
    _keep_top_p(scores, params)
    _keep_min_p(scores, params)
    cumulative = torch.softmax(scores, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    targets = _column(us, cumulative) * cumulative[:, -1:]
    # The first token whose cumulative mass exceeds the target; a token of probability 0 never is.
    token_ids: list[int] = torch.searchsorted(cumulative, targets, right=True).squeeze(1).tolist()
    return token_ids


def _keep_top_k(scores: Tensor, params: Many[SamplingParams]) -> None:
    rows = [row for row, p in enumerate(params) if 0 < p.top_k < scores.shape[-1]]
    if not rows:
        return
    num_kept = torch.tensor([[params[row].top_k] for row in rows], device=scores.device)
    part = scores[rows]
    largest = part.topk(max(params[row].top_k for row in rows), dim=-1).values
    scores[rows] = part.masked_fill(~_largest(part, largest, num_kept), -torch.inf)


def _keep_top_p(scores: Tensor, params: Many[SamplingParams]) -> None:
    rows = [row for row, p in enumerate(params) if p.top_p < 1]
    if not rows:
        return
    top_p = _column([params[row].top_p for row in rows], scores).double()
    part = scores[rows]
    probabilities = torch.softmax(part, dim=-1)
    largest = probabilities.topk(min(_NUM_NUCLEUS_CANDIDATES, scores.shape[-1]), dim=-1).values
    mass = largest.cumsum(dim=-1, dtype=torch.float64)
    if bool((mass[:, -1:] < top_p).any()):
        largest = probabilities.sort(dim=-1, descending=True).values
        mass = largest.cumsum(dim=-1, dtype=torch.float64)
    # The nucleus ends with the token that reaches top_p (arXiv:1904.09751).
    num_kept = (mass < top_p).sum(dim=-1, keepdim=True).add(1).clamp(max=largest.shape[-1])
    scores[rows] = part.masked_fill(~_largest(probabilities, largest, num_kept), -torch.inf)


def _keep_min_p(scores: Tensor, params: Many[SamplingParams]) -> None:
    """p >= min_p * max(p), which is score >= log(min_p), as the largest score is 0."""
    if any(p.min_p for p in params):
        limit = _column([p.min_p for p in params], scores).log()
        scores.masked_fill_(scores < limit, -torch.inf)


def _largest(values: Tensor, descending: Tensor, num_kept: Tensor) -> Tensor:
    """Mask of exactly the `num_kept` largest values of each row; among equal values the smaller ids are kept.

    values: (num_rows, vocab_size). descending: (num_rows, n), the n largest of them. num_kept: (num_rows, 1), 1..n.
    """
    threshold = descending.gather(1, num_kept - 1)
    is_above = values > threshold
    is_tie = values == threshold
    num_ties = num_kept - is_above.sum(dim=-1, keepdim=True)
    return is_above | (is_tie & (is_tie.cumsum(dim=-1) <= num_ties))


def _column(numbers: Many[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).unsqueeze(1)
