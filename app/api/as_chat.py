"""Bodies of other APIs as one chat body, so that every rule and every feature of chat is theirs as well."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from app.api.validation import to_invalid_request
from app.core.request import GenerationRequest
from app.errors import InvalidRequest
from app.schemas.chat import ChatRequest


def chat_body(fields: Mapping[str, Any], own_names: Mapping[str, str]) -> ChatRequest:
    """The chat body with those of these fields that are not None.

    own_names: what the caller's API calls a field of chat, or a part of its path, the longer ones first. Raises
    InvalidRequest in these words.
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
        if name in param:
            return param.replace(name, own, 1)
    return param


def in_own_names(wanted: GenerationRequest, own_names: Mapping[str, str]) -> GenerationRequest:
    """The request of a chat body, whose later errors name the caller's fields too."""
    tool_use = wanted.tool_use
    if tool_use is not None:
        # as a tool has it, without its dot
        schema_field = own_name(f".{tool_use.schema_field}", own_names).removeprefix(".")
        tool_use = replace(tool_use, schema_field=schema_field)
    return replace(wanted, tool_use=tool_use, grammar_param=own_name(wanted.grammar_param, own_names))
