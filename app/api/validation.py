"""What pydantic found wrong with a body, in OpenAI's words: a code names the rule, a param the field."""

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from app.errors import InvalidRequest

MAX_ERRORS: Final = 10
MAX_ECHOED_CHARS: Final = 200

CODES: Final = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "string_too_long": "string_too_long",
    "string_too_short": "string_too_short",
    "string_pattern_mismatch": "invalid_value",
    "too_long": "array_above_max_length",
    "union_tag_not_found": "invalid_type",
    "literal_error": "invalid_value",
    "enum": "invalid_value",
    "finite_number": "invalid_value",
}
BOUNDS: Final = {
    "greater_than_equal": ("ge", "below_min_value"),
    "greater_than": ("gt", "below_min_value"),
    "less_than_equal": ("le", "above_max_value"),
    "less_than": ("lt", "above_max_value"),
}


def to_invalid_request(error: ValidationError) -> InvalidRequest:
    """One answer for the whole body: code and param of the first rule broken, a sentence for each of the first ten."""
    return refused(error.errors(include_url=False, include_input=False))


def refused(details: Sequence[Any]) -> InvalidRequest:
    """The same for details as pydantic lists them."""
    sentences = " ".join(_sentence(detail) for detail in details[:MAX_ERRORS])
    return InvalidRequest(sentences, code=_code(details[0]), param=_param(details[0]))


def clip(text: str) -> str:
    """At most 200 characters of something that a client sent."""
    return text if len(text) <= MAX_ECHOED_CHARS else text[: MAX_ECHOED_CHARS - 1] + "…"


def _code(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in BOUNDS:
        bound, suffix = BOUNDS[kind]
        return f"{'decimal' if isinstance(context[bound], float) else 'integer'}_{suffix}"
    if kind == "too_short":
        return "empty_array" if context["actual_length"] == 0 else "array_below_min_length"
    if kind in CODES:
        return CODES[kind]
    # a number in a URL is text that has to be parsed
    if kind.endswith(("_type", "_parsing")):
        return "invalid_type"
    # a rule of our own carries the code as its type
    return kind if context.get("is_code") else "invalid_value"


def _param(detail: Any) -> str | None:
    """`('messages', 0, '<list>', 'text')` as `messages[0].text`; tags of unions are written in <> in our schemas."""
    below = detail.get("ctx", {}).get("param")
    path = ""
    for step in (*detail["loc"], *([below] if below else ())):
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith("<"):
            path += f".{step}" if path else step
    return clip(path) or None


def _sentence(detail: Any) -> str:
    param = _param(detail)
    if detail["type"] == "missing":
        return f"Missing required parameter: '{param}'."
    if detail["type"] == "extra_forbidden":
        return f"Unknown parameter: '{param}'."
    if detail["type"] == "union_tag_not_found":
        return f"Invalid type for '{param}'."
    if detail["type"] == "model_type":
        return f"Invalid type for '{param}': expected an object." if param else "The body must be a JSON object."
    return f"Invalid '{param}': {detail['msg'][0].lower()}{clip(detail['msg'][1:])}." if param else f"{detail['msg']}."
