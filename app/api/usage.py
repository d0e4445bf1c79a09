"""How many tokens a request took, in OpenAI's words, and how long, in vLLM's."""

from typing import Any

from app.core.generation import Run


def usage(run: Run) -> dict[str, Any]:
    """Over all prompts and choices, up to now."""
    num_prompt, num_completion = run.num_prompt_tokens, run.num_completion_tokens
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": run.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": run.num_reasoning_tokens},
    }


def usage_json(run: Run) -> str:
    """The same as JSON text, for the hot path of streams that tell it with every chunk."""
    num_prompt, num_completion = run.num_prompt_tokens, run.num_completion_tokens
    return (
        f'{{"prompt_tokens":{num_prompt},"completion_tokens":{num_completion},'
        f'"total_tokens":{num_prompt + num_completion},'
        f'"prompt_tokens_details":{{"cached_tokens":{run.num_cached_tokens}}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{run.num_reasoning_tokens}}}}}'
    )


def request_metrics(run: Run) -> dict[str, float | None] | None:
    """Milliseconds of a request's parts as vLLM's `metrics` object has them; None where several sequences share them.

    time_to_first_token_ms counts from the first step on, tokens_per_second over first step to last token.
    """
    if len(run.choices) != 1:
        return None
    stamps, num_tokens = run.stamps, run.num_completion_tokens
    generation_s = _between(stamps.first_token_s, stamps.last_token_s)
    inference_s = _between(stamps.scheduled_s, stamps.last_token_s)
    return {
        "time_to_first_token_ms": milliseconds(stamps.prefill_s),
        "generation_time_ms": milliseconds(generation_s),
        "queue_time_ms": milliseconds(stamps.queue_s),
        "mean_itl_ms": milliseconds(stamps.tpot_s(num_tokens)),
        "tokens_per_second": round(num_tokens / inference_s, 3) if inference_s else None,
    }


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else end_s - start_s


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to microseconds; None stays None."""
    return None if seconds is None else round(seconds * 1000, 3)
