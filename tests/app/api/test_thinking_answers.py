"""Models that think, and answers that a grammar forms: the echo model thinks first, and then says what it has to."""

import json
from typing import Any

import httpx
import pytest
from replay_server import saying
from sse_reading import stream

# one server, and so one event loop, for all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["days"],
}
AS_SCHEMA = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "trip", "schema": {**SCHEMA, "additionalProperties": False}},
    }
}
TOOLS = [{"type": "function", "function": {"name": "go", "parameters": SCHEMA}}]
NAMED = {"type": "function", "function": {"name": "go"}}
THOUGHT = 'Hm: {"days": 9}? <tool_call>'


def thinking(model: str, after: str, **fields: Any) -> dict[str, Any]:
    """hermes begins to think by itself; the template of qwen3_coder has begun."""
    begin = "<think>\n" if model == "hermes" else ""
    return saying(f"echo/{model}", f"{begin}{THOUGHT}\n</think>\n\n{after}", **{"temperature": 0, **fields})


async def choice_of(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize("model", ["hermes", "qwen3_coder"])
async def test_answer_of_a_schema_comes_behind_the_thinking(replay: httpx.AsyncClient, model: str) -> None:
    body = thinking(model, '{"days": 77}', **AS_SCHEMA)

    message = (await choice_of(replay, body))["message"]
    chunks = await stream(replay, CHAT, body)

    assert message["reasoning_content"] == THOUGHT
    assert json.loads(message["content"])["days"] in range(1, 6)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == THOUGHT
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]


@pytest.mark.parametrize(
    ("constraint", "said", "content"),
    [
        pytest.param({"structured_outputs": {"choice": ["Yes.", "No."]}}, "Yes.", "Yes.", id="choice"),
        pytest.param({"structured_outputs": {"regex": "[a-z]/[0-9]{2}"}}, "a/12", "a/12", id="regex"),
        pytest.param({"structured_outputs": {"grammar": 'start: "a" b\nb: /}?/'}}, "a}", "a}", id="grammar"),
        pytest.param({"response_format": {"type": "json_object"}}, '{"a": {}}', '{"a": {}}', id="json_object"),
    ],
)
async def test_every_kind_of_output_may_come_behind_thinking(
    replay: httpx.AsyncClient, constraint: dict[str, Any], said: str, content: str
) -> None:
    choice = await choice_of(replay, thinking("qwen3_coder", said, **constraint))

    assert choice["message"]["content"] == content
    assert choice["message"]["reasoning"] == THOUGHT
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("model", ["hermes", "qwen3_coder"])
async def test_enforced_call_comes_behind_the_thinking(replay: httpx.AsyncClient, model: str, tool_choice: Any) -> None:
    # the model would rather talk
    body = thinking(model, "I go.", tools=TOOLS, tool_choice=tool_choice, parallel_tool_calls=False, max_tokens=400)

    choice = await choice_of(replay, body)

    assert choice["message"]["reasoning"] == THOUGHT
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "go"
    assert json.loads(call["function"]["arguments"])["days"] in range(1, 6)


@pytest.mark.parametrize("model", ["hermes", "qwen3_coder"])
async def test_model_that_does_not_think_answers_at_once(replay: httpx.AsyncClient, model: str) -> None:
    body = saying(f"echo/{model}", '{"days": 3}', temperature=0, **AS_SCHEMA)

    free = (await choice_of(replay, body))["message"]
    unwanted = (await choice_of(replay, {**body, "chat_template_kwargs": {"enable_thinking": False}}))["message"]

    # where the prompt has begun to think, the model goes on until it is told not to
    assert free["content"] == ('{"days": 3}' if model == "hermes" else None)
    assert (unwanted["content"], "reasoning" in unwanted) == ('{"days": 3}', False)


@pytest.mark.parametrize("model", ["hermes", "qwen3_coder"])
async def test_thinking_that_the_client_does_not_want_is_banned(replay: httpx.AsyncClient, model: str) -> None:
    body = thinking(model, "Yes.", structured_outputs={"choice": ["Yes.", "No."]})

    message = (await choice_of(replay, {**body, "chat_template_kwargs": {"enable_thinking": False}}))["message"]

    assert message["content"] in ("Yes.", "No.")
    assert "reasoning" not in message


async def test_answer_goes_on_without_thinking_where_it_has_begun(replay: httpx.AsyncClient) -> None:
    body = saying("echo/hermes", "<think>x</think>1", structured_outputs={"regex": "[0-9]"}, temperature=0)
    body["messages"].append({"role": "assistant", "content": "The number is "})

    message = (await choice_of(replay, {**body, "continue_final_message": True, "add_generation_prompt": False}))[
        "message"
    ]

    assert message["content"].isdigit()
    assert "reasoning" not in message


async def test_grammar_that_cannot_be_enforced_is_refused_by_its_field(replay: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"a": {"minContains": 1}}}
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}

    answer = await replay.post(CHAT, json=thinking("qwen3_coder", "x", **wanted))

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_schema", "response_format.json_schema.schema")
