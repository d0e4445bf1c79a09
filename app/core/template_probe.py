"""What a chat template can do with tools, found out by rendering a conversation and looking at what is in the prompt.

Templates of different families want the same things in different forms, and none of them says so.
"""

import json
from typing import Any, Final

from app.core.renderer import Renderer, TemplateStuck
from app.core.template_abilities import TemplateAbilities
from app.core.text import TextModel
from app.errors import InvalidRequest

_TOOL: Final = "probe_tool"
_KEY: Final = "probe_key"
_ARGUMENTS: Final = {_KEY: "probe_value"}
_IDS: Final = {False: "call_0123456789abcdef", True: "probe0001"}
_USER: Final = {"role": "user", "content": "probe"}
_TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "probe",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
        },
    }
]


async def template_abilities(renderer: Renderer, text_model: TextModel, template: str) -> TemplateAbilities:
    """The abilities of one of the model's templates; it is rendered a few times when it is first asked about."""
    known = text_model.abilities.get(template)
    if known is None:
        known = text_model.abilities[template] = await _probe(renderer, text_model, template)
    return known


async def _probe(renderer: Renderer, text_model: TextModel, template: str) -> TemplateAbilities:
    async def rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        variables = {**text_model.special_tokens, "messages": messages, "tools": tools, "documents": None}
        try:
            return await renderer.render(template, {**variables, "add_generation_prompt": True})
        except TemplateStuck:
            # says nothing about the template, and must not be remembered
            raise
        except InvalidRequest:
            return ""

    shows_tools = _TOOL in await rendered([_USER], _TOOLS)
    tools = _TOOLS if shows_tools else None
    for has_short_ids, call_id in _IDS.items():
        if _shows_object(await rendered(_messages(call_id, _ARGUMENTS), tools)):
            return TemplateAbilities(shows_tools, "dict", has_short_ids)
        if json.dumps(_ARGUMENTS) in await rendered(_messages(call_id, json.dumps(_ARGUMENTS)), tools):
            return TemplateAbilities(shows_tools, "text", has_short_ids)
    return TemplateAbilities(shows_tools, None)


def _shows_object(prompt: str) -> bool:
    """True if the members of the arguments are there, and not as Python would print them."""
    return _KEY in prompt and _ARGUMENTS[_KEY] in prompt and repr(_KEY) not in prompt


def _messages(call_id: str, arguments: object) -> list[dict[str, Any]]:
    call = {"id": call_id, "type": "function", "function": {"name": "probe_call", "arguments": arguments}}
    return [
        _USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "probe_call", "tool_call_id": call_id, "content": "probe_result"},
    ]
