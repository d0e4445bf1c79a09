"""The worker's own check of a request: nothing that arrives here may hurt the loop or another sequence.

The front end has checked the same before and says it better; this is the second wall, not the first.
"""

import math
from collections.abc import Iterator

from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import Generate, RequestError
from workers.protocol.specs import MAX_GRAMMAR_BYTES, MAX_TOP_LOGPROBS, SamplingParams

MAX_STOP_TOKENS = 256

# Inclusive bounds of every number in SamplingParams that needs no knowledge of the model.
_BOUNDS: dict[str, tuple[float, float]] = {
    "max_tokens": (0, 2**31 - 1),
    "temperature": (0, 100),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(2**63), 2**64 - 1),
    "logprobs": (0, MAX_TOP_LOGPROBS),
    "prompt_logprobs": (0, MAX_TOP_LOGPROBS),
}


def refusal(request: Generate, *, vocab_size: int, max_model_len: int) -> RequestError | None:
    """Why this request cannot run here, or None. max_model_len: tokens of prompt and output that fit."""
    num_prompt_tokens = len(request.prompt_ids)
    num_needed = num_prompt_tokens + min(request.params.max_tokens, 1)
    if num_needed > max_model_len:
        return RequestError(
            code=WorkerErrorCode.CONTEXT_LENGTH_EXCEEDED,
            message=f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_needed} tokens ({num_prompt_tokens} in the prompt). Shorten the prompt.",
        )
    problem = next(_problems(request, vocab_size), None)
    if problem is None:
        return None
    return RequestError(code=WorkerErrorCode.INVALID_REQUEST, message=problem)


def _problems(request: Generate, vocab_size: int) -> Iterator[str]:
    params = request.params
    if not request.prompt_ids:
        yield "the prompt is empty; it needs at least one token"
    yield from _bad_ids("prompt", request.prompt_ids, vocab_size)
    yield from _bad_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    yield from _bad_ids("logit_bias", params.logit_bias, vocab_size)
    yield from _bad_numbers(params)
    if len(params.stop_token_ids) > MAX_STOP_TOKENS:
        yield f"stop_token_ids has {len(params.stop_token_ids)} entries, at most {MAX_STOP_TOKENS} are allowed"
    if params.grammar is not None and len(params.grammar.text.encode()) > MAX_GRAMMAR_BYTES:
        yield f"the grammar has more than {MAX_GRAMMAR_BYTES} bytes"
    # Comparisons are written so that NaN fails them.
    if not 0 < params.top_p <= 1:
        yield f"top_p is {params.top_p}, it must be above 0 and at most 1"
    if not 0 <= params.min_tokens <= params.max_tokens:
        yield f"min_tokens is {params.min_tokens}, it must be between 0 and max_tokens ({params.max_tokens})"
    if not all(math.isfinite(bias) and -100 <= bias <= 100 for bias in params.logit_bias.values()):
        yield "logit_bias values must be between -100 and 100"


def _bad_ids(name: str, token_ids: "list[int] | tuple[int, ...] | dict[int, float]", vocab_size: int) -> Iterator[str]:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        yield f"{name} has a token id outside 0..{vocab_size - 1}, the model's vocabulary"


def _bad_numbers(params: SamplingParams) -> Iterator[str]:
    for name, (low, high) in _BOUNDS.items():
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            yield f"{name} is {value}, it must be between {low} and {high}"
