"""How many tokens a request took, in OpenAI's words."""

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
