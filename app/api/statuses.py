"""Which statuses /openapi.json says of each route. What can go wrong depends on what a route takes, not on its name."""

from typing import Any, Final

_SCHEMA: Final = "Error"
# Anthropic's routes have Anthropic's errors.
_MESSAGES: Final = "/v1/messages"
_MESSAGES_SCHEMA: Final = "MessagesError"
_MESSAGES_ERROR: Final = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MEANINGS: Final = {
    400: "A field, a parameter or the request itself breaks a rule",
    401: "No key, or not one of the configured keys",
    403: "The key's scope, or the page's origin, does not cover this route",
    404: "No such model, variant, job or file",
    408: "The body did not arrive in time",
    409: "The present state forbids it",
    413: "The body is too large",
    415: "The body is not declared as application/json",
    429: "Too many requests; Retry-After tells when there is room",
    500: "The server's own fault",
    503: "Not now; Retry-After tells when",
    504: "It took longer than the server allows",
    507: "Not enough memory or disk",
}
# The guard asks for these before any route is reached; the last one can be anywhere.
_ALWAYS: Final = (400, 401, 403, 429, 500)
_WITH_PARAMETERS: Final = (404,)
_CHANGING: Final = (409,)
_WITH_BODY: Final = (404, 408, 409, 413, 415, 503, 504, 507)
# Routes that are not there yet, or that ask a worker, without a body.
_ALSO: Final = {"/readyz": (503,), "/health": (503,), "/healthz": (503,), "/tokenizer_info": (503, 504, 507)}
_ACCEPTED: Final = frozenset({"/v1/load", "/v1/unload", "/v1/quantize", "/v1/compress", "/v1/measure", "/v1/bases"})


def add_statuses(document: dict[str, Any]) -> None:
    """Give every operation of an OpenAPI document the statuses that it can answer with, and the shape of errors."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update({_SCHEMA: _ERROR, _MESSAGES_SCHEMA: _MESSAGES_ERROR})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            # FastAPI's own answer to a wrong parameter; the handlers turn it into status 400
            responses.pop("422", None)
            if method == "post" and path in _ACCEPTED:
                responses["202"] = {"description": "Accepted: it goes on after the answer"}
            schema = _MESSAGES_SCHEMA if path.startswith(_MESSAGES) else _SCHEMA
            responses.update({str(status): _error(status, schema) for status in _errors_of(path, method, operation)})


def _errors_of(path: str, method: str, operation: dict[str, Any]) -> list[int]:
    found = {*_ALWAYS, *_ALSO.get(path, ())}
    if operation.get("parameters"):
        found.update(_WITH_PARAMETERS)
    if method != "get":
        found.update(_CHANGING)
    if "requestBody" in operation:
        found.update(_WITH_BODY)
    return sorted(found)


def _error(status: int, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": _MEANINGS[status], "content": content}
