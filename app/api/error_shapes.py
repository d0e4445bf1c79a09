"""An error in the words of whoever asks: OpenAI's object everywhere, Anthropic's on the routes of /v1/messages."""

from typing import Any, Final

from starlette.types import Scope

_ANTHROPIC_ROUTES: Final = ("/v1/messages", "/v1/messages/count_tokens")
_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def is_anthropic(scope: Scope) -> bool:
    """True on Anthropic's routes, with a variant's prefix or without."""
    path: str = scope["path"]
    return path.endswith(_ANTHROPIC_ROUTES)


def shaped(error: dict[str, str | None], status: int, scope: Scope) -> dict[str, Any]:
    """The body of an error answer. error: OpenAI's four fields."""
    if not is_anthropic(scope):
        return {"error": error}
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": error["message"]},
        "request_id": scope.get("slimserve.request_id"),
    }
