"""The message that /v1/messages answers with, and its blocks."""

import json
import secrets
from typing import Any

import msgspec

from app.core.generation import Run
from app.core.parts import Part, Parts
from workers.protocol.messages import FinishReason


def new_message(run: Run) -> dict[str, Any]:
    """Nothing is said yet."""
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": run.variant.id}


def block(part: Part) -> dict[str, Any]:
    """A whole block. A call whose arguments are no JSON object is text: its name, and what the model wrote."""
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    arguments = call_input(part)
    if arguments is None:
        return {"type": "text", "text": f"{part.name} {part.text}"}
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": msgspec.Raw(arguments)}


def call_input(part: Part) -> bytes | None:
    """The arguments of a call as the JSON of an object that every client reads; None if they are none."""
    try:
        # small models put line ends into strings as they are
        value = json.loads(part.text, strict=False)
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def stop(run: Run, parts: Parts) -> dict[str, str | None]:
    """Why the message has ended."""
    matched = run.choices[0].matched_stop
    if parts.finish_reason is FinishReason.LENGTH:
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if any(part.kind == "call" and call_input(part) is not None for part in parts.end()):
        return {"stop_reason": "tool_use", "stop_sequence": None}
    return {"stop_reason": "end_turn" if matched is None else "stop_sequence", "stop_sequence": matched}


def usage(run: Run) -> dict[str, int]:
    """Prompt tokens that were found in the cache are counted apart."""
    return {
        "input_tokens": run.num_prompt_tokens - run.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": run.num_cached_tokens,
        "output_tokens": run.num_completion_tokens,
    }
