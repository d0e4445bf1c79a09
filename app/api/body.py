"""From bytes to a checked body: content type, size in time, strict JSON, then the schema."""

import asyncio
import re
from typing import Any, Final, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.api.strict_json import parse_json
from app.api.validation import clip, to_invalid_request
from app.api.variant_prefix import VARIANT
from app.errors import InvalidRequest, RequestTimeout, UnsupportedMediaType
from app.schemas.body import OpenAIBody

BODY_TIMEOUT_S: Final = 30
# The scope's key under which the guard finds the names of ignored fields when the answer starts.
IGNORED_FIELDS: Final = "slimserve.ignored"
_HEADER_SAFE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_NAMED: Final = 20
MAX_FIELDS: Final = 256

B = TypeVar("B", bound=BaseModel)


class JsonBody(Generic[B]):
    """A FastAPI dependency that gives the request's body as `model`, or raises an ApiError that says what is wrong."""

    def __init__(self, model: type[B]) -> None:
        self.model = model

    async def __call__(self, request: Request) -> B:
        """The body of this request."""
        model = self.model
        _require_json(request)
        raw = parse_json(await _read_in_time(request))
        if not isinstance(raw, dict):
            raise InvalidRequest("The body must be a JSON object.", code="invalid_type")
        if len(raw) > MAX_FIELDS:
            raise InvalidRequest(f"The JSON body has more than {MAX_FIELDS} fields.", code="json_too_complex")
        if VARIANT in request.scope and "model" in model.model_fields:
            raw["model"] = request.scope[VARIANT]
        if issubclass(model, OpenAIBody):
            _refuse_unsupported(model, raw)
        try:
            body = model.model_validate(raw)
        except ValidationError as error:
            raise to_invalid_request(error) from error
        if isinstance(body, OpenAIBody):
            _name_unknown(request, body)
        return body


def json_body(model: type[B]) -> JsonBody[B]:
    """The dependency for bodies of this model."""
    return JsonBody(model)


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Send the body as JSON, with the header 'content-type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Send the body as it is, without 'content-encoding'.")


async def _read_in_time(request: Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError as error:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIMEOUT_S} s.") from error


def _refuse_unsupported(model: type[OpenAIBody], raw: dict[str, Any]) -> None:
    found = model.first_unsupported(raw)
    if found is not None:
        name, way_out = found
        raise InvalidRequest(
            f"Parameter '{name}' is not supported: {way_out}.", code="unsupported_parameter", param=name
        )


def _name_unknown(request: Request, body: OpenAIBody) -> None:
    names = body.unknown_fields()
    if not names:
        return
    if request.app.state.settings.strict_params:
        raise InvalidRequest(f"Unknown parameter: '{clip(names[0])}'.", code="unknown_parameter", param=clip(names[0]))
    safe = [name for name in names if _HEADER_SAFE.fullmatch(name)][:_MAX_NAMED]
    request.scope[IGNORED_FIELDS] = ", ".join(safe or ["?"])
