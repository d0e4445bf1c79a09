"""/v1/responses with the openai package, unmodified."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

MODEL = "echo/main"
INPUT = "The little dog ran"
ITEMS: list[Any] = [
    {"role": "developer", "content": "Be short."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "hi", "annotations": []}],
    },
    {"role": "user", "content": INPUT},
]


@pytest.fixture
async def client(served: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served}/v1", api_key="anything", max_retries=0) as client:
        yield client


async def events_of(client: AsyncOpenAI, **fields: Any) -> list[Any]:
    stream = await client.responses.create(model=MODEL, stream=True, **fields)
    return [event async for event in stream]


async def test_whole_answer_is_a_response_that_the_package_reads(client: AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model=MODEL, input=INPUT, instructions="Be short.", max_output_tokens=12, temperature=0, store=False
    )

    assert (answer.object, answer.status, answer.model) == ("response", "incomplete", MODEL)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].type == "message"
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12
    assert (answer.temperature, answer.instructions, answer.previous_response_id) == (0, "Be short.", None)
    assert Response.model_validate(answer.model_dump())


async def test_same_conversation_is_the_same_prompt_as_chat_s(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    answer = await client.responses.create(model=MODEL, input=ITEMS, instructions="Rhyme.", max_output_tokens=20)
    messages = [
        {"role": "system", "content": "Rhyme."},
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": INPUT},
    ]

    chat = (
        await http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 20})
    ).json()

    assert answer.output_text == chat["choices"][0]["message"]["content"]
    assert answer.usage is not None
    assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]


async def test_stream_opens_fills_and_closes_in_order(client: AsyncOpenAI) -> None:
    whole = await client.responses.create(model=MODEL, input=INPUT, max_output_tokens=12)

    events = await events_of(client, input=INPUT, max_output_tokens=12)

    kinds = [event.type for event in events]
    num_deltas = kinds.count("response.output_text.delta")
    assert num_deltas > 3
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *["response.output_text.delta"] * num_deltas,
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1].response
    assert deltas == events[-4].text == events[-3].part.text == last.output_text == whole.output_text
    assert {event.response.id for event in events if hasattr(event, "response")} == {last.id}
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}
    assert last.usage.output_tokens == 12
    assert (events[0].response.status, events[0].response.output) == ("in_progress", [])


async def test_logprobs_come_if_they_are_asked_for(client: AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model=MODEL,
        input=INPUT,
        max_output_tokens=5,
        top_logprobs=3,
        include=["message.output_text.logprobs"],
    )
    streamed = await events_of(client, input=INPUT, max_output_tokens=5, top_logprobs=3)

    message: Any = answer.output[0]
    assert len(message.content[0].logprobs) == 5
    assert all(len(entry.top_logprobs) == 3 for entry in message.content[0].logprobs)
    in_deltas = [entry for event in streamed if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in in_deltas] == [entry.token for entry in message.content[0].logprobs]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        pytest.param({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id", id="memory"),
        pytest.param({"conversation": "conv_1"}, "unsupported_parameter", "conversation", id="conversation"),
        pytest.param({"background": True}, "unsupported_parameter", "background", id="background"),
        pytest.param({"truncation": "auto"}, "unsupported_parameter", "truncation", id="truncation"),
        pytest.param({"tool_choice": "required"}, "invalid_value", "tool_choice", id="tool-choice"),
        pytest.param({"include": ["file_search_call.results"]}, "unsupported_parameter", "include[0]", id="include"),
        pytest.param({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format", id="rf"),
        pytest.param({"max_tokens": 5}, "unsupported_parameter", "max_tokens", id="max-tokens"),
        pytest.param({"stop": ["x"]}, "unsupported_parameter", "stop", id="stop"),
        pytest.param({"n": 2}, "invalid_value", "n", id="n"),
        pytest.param({"input": []}, "empty_array", "input", id="no-items"),
        pytest.param({"input": 5}, "invalid_type", "input", id="number"),
        pytest.param({"input": [{"role": "tool", "content": "x"}]}, "invalid_value", "input[0].role", id="role"),
        pytest.param(
            {"input": [{"type": "item_reference", "id": "msg_1"}]},
            "unsupported_content",
            "input[0]",
            id="item",
        ),
        pytest.param(
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "unsupported_content",
            "input[0].content[0]",
            id="image",
        ),
        pytest.param({"max_output_tokens": 0}, "integer_below_min_value", "max_output_tokens", id="no-tokens"),
        pytest.param({"max_output_tokens": 10**6}, "context_length_exceeded", "max_output_tokens", id="no-room"),
        pytest.param({"input": "dog " * 5000}, "context_length_exceeded", "input", id="long"),
        pytest.param(
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "invalid_schema",
            "text.format.schema",
            id="schema",
        ),
        pytest.param({"text": {"format": {"type": "yaml"}}}, "invalid_value", "text.format.type", id="format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_bad_field_is_refused_in_this_route_s_words(
    http: httpx.AsyncClient, fields: dict[str, Any], code: str, param: str, stream: bool
) -> None:
    body = {"model": MODEL, "input": INPUT, "stream": stream, **fields}

    answer = await http.post("/v1/responses", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert "response_format" in fields or "response_format" not in error["message"]


async def test_thinking_may_be_asked_for_encrypted(client: AsyncOpenAI) -> None:
    # as clients without memory do, so that they can send it back
    answer = await client.responses.create(
        model=MODEL, input=INPUT, max_output_tokens=5, include=["reasoning.encrypted_content"]
    )

    assert answer.output_text


async def test_format_is_chat_s_response_format(http: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    output_config = {"format": {"type": "json_schema", "schema": schema}}
    messages = [{"role": "user", "content": INPUT}]

    response = await http.post("/v1/responses", json={"model": MODEL, "input": INPUT, "text": text})
    message = await http.post(
        "/v1/messages", json={"model": MODEL, "messages": messages, "max_tokens": 200, "output_config": output_config}
    )

    assert (response.status_code, response.json()["status"]) == (200, "completed")
    assert json.loads(response.json()["output"][0]["content"][0]["text"]) == {"a": "b"}
    assert json.loads(message.json()["content"][0]["text"]) == {"a": "b"}
    assert message.json()["stop_reason"] == "end_turn"


async def test_unknown_model_is_not_found(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="echo/mian", input=INPUT)

    assert caught.value.code == "model_not_found"
