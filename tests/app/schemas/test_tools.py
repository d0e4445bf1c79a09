"""Tools, the choice among them, and the messages that they leave behind: every broken rule has its code and field."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.api.validation import to_invalid_request
from app.schemas.chat import ChatRequest

USER = {"role": "user", "content": "hi"}
FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "5"}
NAMED = {"type": "function", "function": {"name": "f"}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "a", "messages": [USER], **fields}


def function(**fields: Any) -> dict[str, Any]:
    return chat(tools=[{"type": "function", "function": {**FUNCTION, **fields}}])


def messages(*later: dict[str, Any]) -> dict[str, Any]:
    return chat(messages=[USER, *later])


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        pytest.param(chat(tools=5), "invalid_type", "tools", id="tools-number"),
        pytest.param(chat(tools=[None]), "invalid_type", "tools[0]", id="tool-null"),
        pytest.param(chat(tools=TOOLS * 129), "array_above_max_length", "tools", id="129-tools"),
        pytest.param(chat(tools=TOOLS * 2), "invalid_value", "tools[1].function.name", id="same-name"),
        pytest.param(chat(tools=[{"type": "custom"}]), "invalid_value", "tools[0].type", id="tool-type"),
        pytest.param(
            chat(tools=[{"type": "function"}]), "missing_required_parameter", "tools[0].function", id="no-function"
        ),
        pytest.param(function(name="a b"), "invalid_value", "tools[0].function.name", id="name"),
        pytest.param(function(name="x" * 65), "invalid_value", "tools[0].function.name", id="name-65"),
        pytest.param(function(parameters=[]), "invalid_type", "tools[0].function.parameters", id="parameters-list"),
        pytest.param(
            function(parameters={"type": "array"}), "invalid_schema", "tools[0].function.parameters", id="no-object"
        ),
        pytest.param(function(strict="yes"), "invalid_type", "tools[0].function.strict", id="strict"),
        pytest.param(chat(tools=TOOLS, tool_choice="any"), "invalid_value", "tool_choice", id="choice"),
        pytest.param(chat(tools=TOOLS, tool_choice=5), "invalid_type", "tool_choice", id="choice-number"),
        pytest.param(chat(tool_choice="required"), "invalid_value", "tool_choice", id="required-without-tools"),
        pytest.param(chat(tool_choice=NAMED), "invalid_value", "tool_choice", id="named-without-tools"),
        pytest.param(
            chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "g"}}),
            "invalid_value",
            "tool_choice.function.name",
            id="unknown-name",
        ),
        pytest.param(chat(tools=TOOLS, parallel_tool_calls=1), "invalid_type", "parallel_tool_calls", id="parallel"),
        pytest.param(
            chat(tools=TOOLS, tool_choice="required", response_format={"type": "json_object"}),
            "invalid_value",
            "response_format",
            id="call-and-format",
        ),
        pytest.param(
            chat(tools=TOOLS, structured_outputs={"regex": "a+"}),
            "invalid_value",
            "structured_outputs.regex",
            id="tools-and-regex",
        ),
        pytest.param(
            messages({"role": "tool", "content": "5"}),
            "missing_required_parameter",
            "messages[1].tool_call_id",
            id="result-without-id",
        ),
        pytest.param(messages(RESULT), "invalid_value", "messages[1].tool_call_id", id="result-without-call"),
        pytest.param(
            messages(ASSISTANT, {**RESULT, "tool_call_id": "x"}),
            "invalid_value",
            "messages[2].tool_call_id",
            id="result-of-another",
        ),
        pytest.param(
            messages({**ASSISTANT, "role": "user", "content": "x"}),
            "invalid_value",
            "messages[1].tool_calls",
            id="user-calls",
        ),
        pytest.param(
            messages({**ASSISTANT, "tool_calls": [{**CALL, "function": {"arguments": "{}"}}]}),
            "missing_required_parameter",
            "messages[1].tool_calls[0].function.name",
            id="call-without-name",
        ),
        pytest.param(
            messages({**ASSISTANT, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}),
            "invalid_type",
            "messages[1].tool_calls[0].function.arguments",
            id="arguments-object",
        ),
        pytest.param(
            messages({"role": "assistant", "content": None, "tool_calls": []}),
            "missing_required_parameter",
            "messages[1].content",
            id="no-content-no-calls",
        ),
    ],
)
def test_broken_rule_of_tools_has_code_and_field(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(body)

    error = to_invalid_request(caught.value)
    assert (error.code, error.param) == (code, param), error.message


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(chat(tools=[]), id="no-tools"),
        pytest.param(chat(tool_choice="auto"), id="auto-without-tools"),
        pytest.param(chat(tools=TOOLS, tool_choice="none", response_format={"type": "json_object"}), id="format"),
        pytest.param(chat(tools=TOOLS, response_format={"type": "json_object"}), id="tools-and-format"),
        pytest.param(chat(tools=TOOLS, tool_choice=NAMED, parallel_tool_calls=False), id="named"),
        pytest.param(chat(tools=[{"type": "function", "function": {"name": "f"}}]), id="no-parameters"),
        pytest.param(messages(ASSISTANT, RESULT), id="call-and-result"),
        pytest.param(messages({**ASSISTANT, "reasoning_content": "hm"}, RESULT, USER), id="thoughts"),
    ],
)
def test_what_clients_send_is_taken(body: dict[str, Any]) -> None:
    assert ChatRequest.model_validate(body).unknown_fields() == []
