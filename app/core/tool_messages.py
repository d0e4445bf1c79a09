"""Messages with calls and results, in the form that a template can show; and in plain words where it shows neither."""

import hashlib
import json
from typing import Any

from app.core.template_abilities import SHORT_ID_CHARS, TemplateAbilities
from app.core.tools.calls import FAMILIES, Family
from app.core.tools.use import Tool, ToolUse

Message = dict[str, Any]


def for_template(messages: list[Message], abilities: TemplateAbilities, family: Family | None) -> list[Message]:
    """The messages as a template of these abilities shows them."""
    if abilities.arguments is None:
        return _in_words(messages, family)
    return [_adapted(message, abilities) for message in messages]


def with_described_tools(messages: list[Message], use: ToolUse, family: Family | None) -> list[Message]:
    """The messages with the tools in the system message, for a template that does not show tools."""
    if use.choice == "named":
        text = f"Write the arguments of this function as JSON:\n{_described(use.tool(use.named))}"
    else:
        lines = "\n".join(map(_described, use.tools))
        form = _call_text('"..."', "{...}", family)
        text = f"Functions:\n{lines}\nTo call one, write only {form}"
    first, *others = messages
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *others]
    return [{"role": "system", "content": text}, *messages]


def has_calls(messages: list[Message]) -> bool:
    """True if a tool has been called, or has answered."""
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _adapted(message: Message, abilities: TemplateAbilities) -> Message:
    message = dict(message)
    if "tool_calls" in message:
        message["tool_calls"] = [_adapted_call(call, abilities) for call in message["tool_calls"]]
    if "tool_call_id" in message and abilities.has_short_ids:
        message["tool_call_id"] = _short_id(message["tool_call_id"])
    return message


def _adapted_call(call: dict[str, Any], abilities: TemplateAbilities) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    if abilities.arguments == "dict":
        arguments = _parsed(arguments)
    call_id = _short_id(call["id"]) if abilities.has_short_ids else call["id"]
    return {**call, "id": call_id, "function": {**call["function"], "arguments": arguments}}


def _parsed(arguments: str) -> object:
    """The object; what a model has written wrong stays the text that it is."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _short_id(call_id: str) -> str:
    is_short = len(call_id) == SHORT_ID_CHARS and call_id.isascii() and call_id.isalnum()
    return call_id if is_short else hashlib.sha256(call_id.encode()).hexdigest()[:SHORT_ID_CHARS]


def _in_words(messages: list[Message], family: Family | None) -> list[Message]:
    """Calls as the assistant's own text, results as the user's; results of one turn are one message."""
    said: list[Message] = []
    names: dict[str, str] = {}
    was_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            name = names.get(message.get("tool_call_id", ""), "the function")
            text = f"Result of {name}: {message['content']}"
            if was_result:
                said[-1] = {"role": "user", "content": f"{said[-1]['content']}\n{text}"}
            else:
                said.append({"role": "user", "content": text})
        elif "tool_calls" in message:
            calls = [call["function"] for call in message["tool_calls"]]
            names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
            texts = [_call_text(json.dumps(call["name"]), call["arguments"], family) for call in calls]
            content = "\n".join([*([message["content"]] if message["content"] else []), *texts])
            said.append({**{key: value for key, value in message.items() if key != "tool_calls"}, "content": content})
        else:
            said.append(message)
        was_result = is_result
    return said


def _described(tool: Tool) -> str:
    """In few tokens: a small model may have room for a few hundred in all."""
    return json.dumps(tool.for_template()["function"], ensure_ascii=False, separators=(",", ":"))


def _call_text(name: str, arguments: str, family: Family | None) -> str:
    family = FAMILIES["json"] if family is None else family
    text = f'{{"name": {name}, "{family.arguments_key}": {arguments}}}'
    return text if family.is_bare else f"{family.begin or ''}{text}{family.end or ''}"
