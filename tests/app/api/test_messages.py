"""/v1/messages with the anthropic package, unmodified."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import AsyncAnthropic
from sse_reading import chat

from app.main import create_app
from app.settings import Settings

MODEL = "echo/main"
TEXT = "The little dog ran to the park"
USER: list[Any] = [{"role": "user", "content": TEXT}]


@pytest.fixture
async def client(served: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=served, api_key="anything", max_retries=0) as client:
        yield client


async def test_whole_answer_is_a_message(client: AsyncAnthropic, http: httpx.AsyncClient) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=12, system="Be short.", messages=USER)
    body = chat(max_tokens=12)
    body["messages"] = [{"role": "system", "content": "Be short."}, *USER]

    same = (await http.post("/v1/chat/completions", json=body)).json()

    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == same["choices"][0]["message"]["content"]  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    usage = message.usage
    assert usage.output_tokens == 12
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == same["usage"]["prompt_tokens"]


async def test_stream_opens_fills_and_closes_in_order(client: AsyncAnthropic) -> None:
    whole = await client.messages.create(model=MODEL, max_tokens=12, messages=USER)

    stream = await client.messages.create(model=MODEL, max_tokens=12, messages=USER, stream=True)
    events: list[Any] = [event async for event in stream]

    kinds = [event.type for event in events]
    num_deltas = kinds.count("content_block_delta")
    assert num_deltas > 3
    assert kinds == [
        *("message_start", "content_block_start"),
        *["content_block_delta"] * num_deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    text = "".join(event.delta.text for event in events if event.type == "content_block_delta")
    assert text == whole.content[0].text  # type: ignore[union-attr]
    assert events[0].message.content == []
    assert events[0].message.usage.input_tokens + events[0].message.usage.cache_read_input_tokens > 0
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("max_tokens", 12)


async def test_package_s_own_helper_collects_the_stream(client: AsyncAnthropic) -> None:
    async with client.messages.stream(model=MODEL, max_tokens=12, messages=USER) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()

    assert "".join(texts) == final.content[0].text  # type: ignore[union-attr]
    assert final.usage.output_tokens == 12


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_sequence_is_named(client: AsyncAnthropic, stream: bool) -> None:
    fields: dict[str, Any] = {"stop_sequences": ["cat", "dog ran"], "max_tokens": 200, "messages": USER}
    if stream:
        async with client.messages.stream(model=MODEL, **fields) as events:
            message: Any = await events.get_final_message()
    else:
        message = await client.messages.create(model=MODEL, **fields)

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "dog ran")
    assert message.content[0].text.endswith("The little ")


async def test_blocks_turns_and_a_given_beginning_are_chat_s(client: AsyncAnthropic, http: httpx.AsyncClient) -> None:
    cached = {"type": "ephemeral"}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "one", "cache_control": cached}]},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "Once upon"},
    ]
    system: list[Any] = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    body = chat(max_tokens=12, continue_final_message=True)
    body["messages"] = [
        {"role": "system", "content": "A\nB"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "Once upon"},
    ]

    count = await client.messages.count_tokens(model=MODEL, system=system, messages=messages)
    message = await client.messages.create(model=MODEL, max_tokens=12, system=system, messages=messages)
    same = (await http.post("/v1/chat/completions", json=body)).json()

    assert count.input_tokens == same["usage"]["prompt_tokens"]
    assert message.content[0].text == same["choices"][0]["message"]["content"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        pytest.param({"max_tokens": None}, "invalid_request_error", "max_tokens", id="null-max-tokens"),
        pytest.param({"messages": []}, "invalid_request_error", "messages", id="no-messages"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "invalid_request_error",
            "messages[0].content[0]",
            id="image",
        ),
        pytest.param({"tools": [{"name": "f"}]}, "invalid_request_error", "tools", id="tools"),
        pytest.param({"thinking": {"type": "often"}}, "invalid_request_error", "thinking", id="thinking"),
        pytest.param({"tool_choice": {"type": "any"}}, "invalid_request_error", "tool_choice", id="tool-choice"),
        pytest.param(
            {"output_config": {"format": {"type": "yaml"}}},
            "invalid_request_error",
            "output_config.format",
            id="format",
        ),
        pytest.param({"stop": ["x"]}, "invalid_request_error", "stop_sequences", id="stop"),
        pytest.param({"response_format": {"type": "json_object"}}, "invalid_request_error", "output_config", id="rf"),
        pytest.param({"n": 2}, "invalid_request_error", "'n'", id="n"),
        pytest.param({"max_tokens": 10**6}, "invalid_request_error", "maximum context length", id="no-room"),
        pytest.param({"model": "echo/mian"}, "not_found_error", "echo/main", id="model"),
        pytest.param({"model": "slimstory"}, "overloaded_error", "not loaded", id="not-loaded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_errors_have_anthropic_s_shape(
    http: httpx.AsyncClient, fields: dict[str, Any], kind: str, said: str, stream: bool
) -> None:
    body = {"model": MODEL, "max_tokens": 12, "messages": USER, "stream": stream, **fields}

    answer = await http.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})

    content = answer.json()
    assert content["type"] == "error"
    assert content["error"].keys() == {"type", "message"}
    assert content["error"]["type"] == kind
    assert said in content["error"]["message"]
    assert content["request_id"] == answer.headers["x-request-id"]


async def test_package_raises_its_own_errors(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="echo/main"):
        await client.messages.create(model="echo/mian", max_tokens=5, messages=USER)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        await client.messages.create(model=MODEL, max_tokens=10_000, messages=USER)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages", 415, "invalid_request_error"),
        ("POST", "/v/echo/main/v1/messages/count_tokens", 415, "invalid_request_error"),
    ],
)
async def test_framework_s_errors_have_the_shape_too(
    http: httpx.AsyncClient, method: str, path: str, status: int, kind: str
) -> None:
    answer = await http.request(method, path)

    assert (answer.status_code, answer.json()["type"], answer.json()["error"]["type"]) == (status, "error", kind)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": "secret", "authorization": "Bearer wrong"}, 401),
        ({"x-api-key": "secret"}, 404),
        ({"authorization": "Bearer secret"}, 404),
    ],
)
async def test_key_is_taken_from_anthropic_s_header(headers: dict[str, str], status: int) -> None:
    transport = httpx.ASGITransport(app=create_app(Settings(api_keys=("secret",))))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        anywhere = await http.get("/v1/nothing", headers=headers)
        messages = await http.post("/v1/messages", headers=headers)

    assert anywhere.status_code == status
    assert messages.json()["error"]["type"] == ("authentication_error" if status == 401 else "invalid_request_error")


async def test_embeddings_are_refused_with_the_reason(http: httpx.AsyncClient) -> None:
    refused = await http.post("/v1/embeddings", json={"model": MODEL, "input": ["a", "b"]})
    unknown = await http.post("/v1/embeddings", json={"model": "nobody", "input": "a"})

    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_model", "model")
    assert "embedding" in error["message"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
