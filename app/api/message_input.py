"""What /v1/messages is given as chat's fields: messages, tools, the choice among them, switches of thinking."""

import json
from collections.abc import Iterator
from typing import Any, Final

from app.schemas.chat import TextPart
from app.schemas.message_blocks import Block, Blocks, Texts, ThinkingBlock, ToolResultBlock, ToolUseBlock
from app.schemas.messages import CountTokensRequest

Message = dict[str, Any]

_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def chat_messages(body: CountTokensRequest) -> list[Message]:
    """The system prompt first, neighbours of one role as one message, but for results, which have one each."""
    messages: list[Message] = []
    if body.system is not None:
        messages.append({"role": "system", "content": _parts(body.system)})
    for turn in body.messages:
        for block in _blocks(turn.content):
            _add(messages, turn.role, block)
    return messages


def chat_tools(body: CountTokensRequest) -> dict[str, Any]:
    """The fields `tools`, `tool_choice` and `parallel_tool_calls`."""
    fields: dict[str, Any] = {}
    if body.tools is not None:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.input_schema,
                    "strict": tool.strict,
                },
            }
            for tool in body.tools
        ]
    if (choice := body.tool_choice) is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        fields["tool_choice"] = _CHOICES.get(choice.type, named)
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def chat_switches(body: CountTokensRequest) -> dict[str, Any]:
    """For the chat template. Templates read one of the first two; without `thinking` they do as they always do."""
    if body.thinking is None:
        return {}
    thinks = body.thinking.type != "disabled"
    budget = body.thinking.budget_tokens
    switches = {"enable_thinking": thinks, "thinking": thinks}
    return switches if budget is None else {**switches, "thinking_budget": budget}


def _blocks(content: Blocks) -> Iterator[str | Block]:
    """Results first: in chat they stand directly behind the calls."""
    if isinstance(content, str):
        return iter([content])
    return iter(sorted(content, key=lambda block: not isinstance(block, ToolResultBlock)))


def _add(messages: list[Message], role: str, block: str | Block) -> None:
    if isinstance(block, ToolResultBlock):
        content = "" if block.content is None else _parts(block.content)
        messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        return
    if not messages or messages[-1]["role"] != role:
        messages.append({"role": role, "content": ""})
    message = messages[-1]
    if isinstance(block, ThinkingBlock):
        thoughts = [message["reasoning_content"]] if "reasoning_content" in message else []
        message["reasoning_content"] = "\n".join([*thoughts, block.thinking])
    elif isinstance(block, ToolUseBlock):
        function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
        call = {"id": block.id, "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)
    elif isinstance(block, str | TextPart):
        message["content"] = [*message["content"], *_parts(block if isinstance(block, str) else [block])]


def _parts(content: Texts) -> list[dict[str, str]]:
    texts = [content] if isinstance(content, str) else [part.text for part in content]
    return [{"type": "text", "text": text} for text in texts]
