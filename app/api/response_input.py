"""The input of /v1/responses as chat's messages: items of one turn of the assistant become one message."""

from typing import Any

from app.schemas.response_items import CallItem, CallOutputItem, FunctionTool, FunctionToolChoice, ReasoningItem
from app.schemas.responses import ResponsesRequest

Message = dict[str, Any]


def chat_messages(body: ResponsesRequest) -> list[Message]:
    """The whole conversation."""
    messages: list[Message] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, CallItem):
            function = {"name": item.name, "arguments": item.arguments}
            calls = _last_turn(messages).setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        elif isinstance(item, CallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _parts(item.output)})
        elif isinstance(item, ReasoningItem):
            if text := item.text():
                messages.append({"role": "assistant", "content": "", "reasoning_content": text})
        elif item.role == "assistant" and messages and messages[-1].keys() & {"tool_calls", "reasoning_content"}:
            # belongs to the thinking before it, or stands beside the calls
            messages[-1]["content"] = [*messages[-1]["content"], *_parts(item.content)]
        else:
            messages.append({"role": item.role, "content": _parts(item.content)})
    return messages


def chat_tools(tools: list[FunctionTool] | None) -> list[dict[str, Any]] | None:
    """Chat has a function's fields one level deeper."""
    if tools is None:
        return None
    return [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in tools]


def chat_tool_choice(choice: str | FunctionToolChoice | None) -> str | dict[str, Any] | None:
    """Likewise."""
    if not isinstance(choice, FunctionToolChoice):
        return choice
    return {"type": "function", "function": {"name": choice.name}}


def _last_turn(messages: list[Message]) -> Message:
    """The assistant's message at the end, which is made if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _parts(content: Any) -> list[dict[str, str]]:
    """The content as chat has it."""
    texts = [content] if isinstance(content, str) else [part.text for part in content]
    return [{"type": "text", "text": text} for text in texts]
