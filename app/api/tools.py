"""Tools of a body in the core's words, and calls as clients read them."""

from typing import Any

from app.api.sse import json_string
from app.core.collected import Call
from app.core.tools.output import CallPiece
from app.core.tools.use import Tool, ToolUse
from app.schemas import tools
from app.schemas.tools import NamedChoice, ToolFields
from workers.protocol.messages import FinishReason


def to_tools(given: list[tools.Tool] | None) -> tuple[Tool, ...]:
    """The functions."""
    functions = [tool.function for tool in given or ()]
    return tuple(
        Tool(
            name=function.name,
            description=function.description,
            parameters=function.parameters,
            strict=function.strict,
        )
        for function in functions
    )


def to_tool_use(body: ToolFields) -> ToolUse:
    """What a chat may call and must call. With `none` the model is not told about its tools."""
    choice = body.tool_choice or "auto"
    named = choice.function.name if isinstance(choice, NamedChoice) else ""
    return ToolUse(
        tools=() if choice == "none" else to_tools(body.tools),
        choice="named" if isinstance(choice, NamedChoice) else choice,
        named=named,
        is_parallel=body.parallel_tool_calls is not False,
    )


def call_object(call: Call) -> dict[str, Any]:
    """One of `message.tool_calls`."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_delta(piece: CallPiece) -> str:
    """`delta.tool_calls` as JSON: the first of a call has its id and name, the others only go on with its arguments."""
    arguments = f'"arguments":{json_string(piece.arguments)}'
    if piece.id is None or piece.name is None:
        return f'{{"tool_calls":[{{"index":{piece.index},"function":{{{arguments}}}}}]}}'
    head = f'"index":{piece.index},"id":{json_string(piece.id)},"type":"function"'
    return f'{{"tool_calls":[{{{head},"function":{{"name":{json_string(piece.name)},{arguments}}}}}]}}'


def finish_reason(reason: FinishReason | None, *, has_calls: bool) -> str | None:
    """Calls that the model has finished have a reason of their own."""
    return "tool_calls" if has_calls and reason is FinishReason.STOP else reason
