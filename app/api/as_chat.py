"""Bodies of other APIs as one chat body, so that every rule and every feature of chat is theirs as well."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.api.validation import to_invalid_request
from app.errors import InvalidRequest
from app.schemas.chat import ChatRequest


def chat_body(fields: Mapping[str, Any], own_names: Mapping[str, str]) -> ChatRequest:
    """The chat body with those of these fields that are not None.

    own_names: what the caller's API calls a field of chat, the longer ones first. Raises InvalidRequest in these words.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        refused = to_invalid_request(error)
    param = own_name(refused.param or "", own_names)
    message = refused.message.replace(f"'{refused.param}'", f"'{param}'")
    raise InvalidRequest(message, code=refused.code, param=param or None)


def own_name(param: str, own_names: Mapping[str, str]) -> str:
    """What the caller's API calls a field of chat, or a field below it."""
    for name, own in own_names.items():
        if param.startswith(name):
            return own + param.removeprefix(name)
    return param
