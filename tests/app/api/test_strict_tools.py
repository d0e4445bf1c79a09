"""Strict tools that need not be called: the echo model says what breaks the schema, and cannot."""

import json
from typing import Any

import httpx
import pytest
from replay_server import said, saying
from sse_reading import stream

# one server, and so one event loop, for all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Rom"]}, "days": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["city", "days"],
}
NOT_ENFORCEABLE = {"type": "object", "properties": {"city": {"not": {"const": "Rom"}}}}
BAD_ARGUMENTS = '{"city": 5, "where": true}'
BAD = f'{{"name": "get_weather", "arguments": {BAD_ARGUMENTS}}}'
# no grammar can hold these before it knows whose they are
ARGUMENTS_FIRST = f'{{"arguments": {BAD_ARGUMENTS}, "name": "get_weather"}}'
BAD_TAGS = "<tool_call>\n<function=get_weather>\n<parameter=where>\nRom\n</parameter>\n</function>\n</tool_call>"
# the family, what the model would say, and what it reads as without strict tools: content, and arguments of the call
ANSWERS = [
    pytest.param("hermes", f"I look. <tool_call>{BAD}</tool_call>", "I look.", BAD_ARGUMENTS, id="hermes"),
    pytest.param("qwen3_coder", f"</think>I look.{BAD_TAGS}", "I look.", '{"where": "Rom"}', id="qwen3_coder"),
    pytest.param("llama3", BAD, None, BAD_ARGUMENTS, id="llama3"),
    pytest.param("llama3", f"I look.<|python_tag|>{BAD}", "I look.", BAD_ARGUMENTS, id="llama3-tag"),
    pytest.param("mistral", f"I look.[TOOL_CALLS][{BAD}]", "I look.", BAD_ARGUMENTS, id="mistral-list"),
    pytest.param(
        "mistral", f"I look.[TOOL_CALLS]get_weather[ARGS]{BAD_ARGUMENTS}", "I look.", BAD_ARGUMENTS, id="mistral-named"
    ),
    pytest.param("plain", f"\n{BAD}", None, BAD_ARGUMENTS, id="json"),
]


def weather(strict: bool | None, parameters: dict[str, Any] = CITY) -> list[dict[str, Any]]:
    function = {"name": "get_weather", "parameters": parameters, "strict": strict}
    return [{"type": "function", "function": {"name": "add"}}, {"type": "function", "function": function}]


def flat(strict: bool | None, parameters: dict[str, Any] = CITY) -> list[dict[str, Any]]:
    return [{"type": "function", **tool["function"]} for tool in weather(strict, parameters)]


def asking(model: str, text: str, strict: bool | None, **fields: Any) -> dict[str, Any]:
    return saying(
        f"echo/{model}", text, **{"tools": weather(strict), "temperature": 0, "parallel_tool_calls": False, **fields}
    )


async def answered(http: httpx.AsyncClient, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def check_call(name: str, arguments: str) -> None:
    assert name == "get_weather"
    value = json.loads(arguments)
    assert value.keys() == {"city", "days"}
    assert value["city"] in ("Köln", "Rom")
    assert value["days"] in range(1, 6)


@pytest.mark.parametrize(("model", "text", "content", "arguments"), ANSWERS)
async def test_arguments_keep_to_the_schema_of_a_strict_tool_alone(
    replay: httpx.AsyncClient, model: str, text: str, content: str | None, arguments: str
) -> None:
    held = (await answered(replay, asking(model, text, strict=True)))["choices"][0]
    free = (await answered(replay, asking(model, text, strict=None)))["choices"][0]

    (call,) = held["message"]["tool_calls"]
    check_call(**call["function"])
    assert held["message"]["content"] == free["message"]["content"] == content
    assert held["finish_reason"] == free["finish_reason"] == "tool_calls"
    assert free["message"]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(("model", "text", "content", "arguments"), ANSWERS)
async def test_stream_has_the_call_of_the_whole_answer(
    replay: httpx.AsyncClient, model: str, text: str, content: str | None, arguments: str
) -> None:
    body = asking(model, text, strict=True)

    whole = (await answered(replay, body))["choices"][0]["message"]["tool_calls"][0]["function"]
    chunks = await stream(replay, CHAT, body)

    pieces = [piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(piece["function"]["arguments"] for piece in pieces) == whole["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("model", ["hermes", "llama3", "mistral", "plain"])
@pytest.mark.parametrize("text", ["Just text 😀.\n", "", '{"name": "Alice", "age": 3}', "[1, 2]", ARGUMENTS_FIRST])
async def test_text_is_as_free_as_without_strict_tools(replay: httpx.AsyncClient, model: str, text: str) -> None:
    choice = (await answered(replay, asking(model, text, strict=True)))["choices"][0]

    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_thinking_is_free_and_the_call_behind_it_is_not(replay: httpx.AsyncClient) -> None:
    text = f"<think>Should I <tool_call>?</think><tool_call>{BAD}</tool_call>"

    message = (await answered(replay, asking("hermes", text, strict=True)))["choices"][0]["message"]

    assert message["reasoning"] == "Should I <tool_call>?"
    check_call(**message["tool_calls"][0]["function"])


async def test_thinking_that_the_prompt_has_opened_is_free_too(replay: httpx.AsyncClient) -> None:
    text = f"Should I <tool_call>?</think>{BAD_TAGS}"

    message = (await answered(replay, asking("qwen3_coder", text, strict=True)))["choices"][0]["message"]

    assert message["reasoning"] == "Should I <tool_call>?"
    check_call(**message["tool_calls"][0]["function"])


async def test_every_choice_is_held_by_itself(replay: httpx.AsyncClient) -> None:
    answer = await answered(replay, asking("hermes", f"<tool_call>{BAD}</tool_call>", strict=True, n=3))

    for choice in answer["choices"]:
        check_call(**choice["message"]["tool_calls"][0]["function"])


async def test_stop_string_ends_the_text_before_a_call(replay: httpx.AsyncClient) -> None:
    text = f"I look.\n\n<tool_call>{BAD}</tool_call>"

    choice = (await answered(replay, asking("hermes", text, strict=True, stop=["\n\n"])))["choices"][0]

    assert (choice["message"]["content"], choice["finish_reason"]) == ("I look.", "stop")


async def test_nothing_is_held_where_nobody_looks_for_calls(replay: httpx.AsyncClient) -> None:
    text = f"<tool_call>{BAD}</tool_call>"
    load = {"model": "echo/text_arguments", "tool_parser": "none", "reasoning_parser": "none"}
    assert (await replay.post("/v1/load", json=load)).status_code == 200

    body = asking("text_arguments", text, strict=True, tools=weather(True, NOT_ENFORCEABLE))
    message = (await answered(replay, body))["choices"][0]["message"]
    await replay.post("/v1/load", json={**load, "tool_parser": "auto", "reasoning_parser": "auto"})

    assert message["content"] == text


async def test_functions_are_strict_on_responses_unless_they_say_no(replay: httpx.AsyncClient) -> None:
    def body(tools: list[dict[str, Any]]) -> dict[str, Any]:
        text = said(f"<tool_call>{BAD}</tool_call>")
        fields = {"temperature": 0, "parallel_tool_calls": False, "tools": tools}
        return {"model": "echo/hermes", "input": text, **fields}

    unsaid = [{name: value for name, value in tool.items() if name != "strict"} for tool in flat(None)]
    for tools in (flat(True), flat(None), unsaid):
        (call,) = (await answered(replay, body(tools), "/v1/responses"))["output"]
        check_call(call["name"], call["arguments"])
    not_strict = [{**tool, "strict": False} for tool in unsaid]
    (call,) = (await answered(replay, body(not_strict), "/v1/responses"))["output"]
    assert call["arguments"] == BAD_ARGUMENTS


async def test_default_of_responses_gives_way_where_it_cannot_be(replay: httpx.AsyncClient) -> None:
    body = {"model": "echo/hermes", "input": said(f"<tool_call>{BAD}</tool_call>")}

    (call,) = (await answered(replay, {**body, "tools": flat(None, NOT_ENFORCEABLE)}, "/v1/responses"))["output"]

    assert call["arguments"] == BAD_ARGUMENTS


async def test_strict_tool_is_held_beside_one_that_cannot_be(replay: httpx.AsyncClient) -> None:
    other = {"type": "function", "name": "other", "parameters": NOT_ENFORCEABLE}
    fields = {"temperature": 0, "parallel_tool_calls": False, "tools": [other, flat(None)[1]]}
    body = {"model": "echo/hermes", "input": said(f"<tool_call>{BAD}</tool_call>"), **fields}

    (call,) = (await answered(replay, body, "/v1/responses"))["output"]

    check_call(call["name"], call["arguments"])


async def test_messages_have_strict_tools_too(replay: httpx.AsyncClient) -> None:
    tool = {"name": "get_weather", "input_schema": CITY, "strict": True}
    message = {"role": "user", "content": said(f"I look. <tool_call>{BAD}</tool_call>")}
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    fields = {"max_tokens": 200, "temperature": 0, "tools": [tool], "tool_choice": choice}

    answer = await answered(replay, {"model": "echo/hermes", "messages": [message], **fields}, "/v1/messages")

    text, call = answer["content"]
    assert (text["text"], call["type"]) == ("I look.", "tool_use")
    check_call(call["name"], json.dumps(call["input"]))


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        pytest.param(CHAT, {"tools": weather(True, NOT_ENFORCEABLE)}, "tools[1].function.parameters", id="chat"),
        pytest.param("/v1/responses", {"tools": flat(True, NOT_ENFORCEABLE)}, "tools[1].parameters", id="responses"),
        pytest.param(
            "/v1/messages",
            {"tools": [{"name": "get_weather", "input_schema": NOT_ENFORCEABLE, "strict": True}], "max_tokens": 9},
            "tools[0].input_schema",
            id="messages",
        ),
    ],
)
async def test_schema_that_cannot_be_enforced_is_refused_by_its_field(
    replay: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str
) -> None:
    said_hello = {"input": said("Hello")} if path == "/v1/responses" else saying("", "Hello")
    body = {**said_hello, **fields, "model": "echo/hermes"}

    refused = await replay.post(path, json=body)
    body["tools"] = json.loads(json.dumps(body["tools"]).replace('"strict": true', '"strict": false'))
    accepted = await replay.post(path, json=body)

    error = refused.json()["error"]
    assert refused.status_code == 400, refused.text
    assert "'not'" in error["message"]
    assert "of the function 'get_weather'" in error["message"]
    # Anthropic's errors have no such fields
    assert path == "/v1/messages" or (error["code"], error["param"]) == ("invalid_schema", param)
    assert accepted.status_code == 200
