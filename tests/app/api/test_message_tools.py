"""Calls and thinking on /v1/messages with the anthropic package: the echo model says what a model would."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from replay_server import said

# one server, and so one event loop, for all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "echo/hermes"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"name": "get_weather", "description": "Ask", "input_schema": CITY, "cache_control": {"type": "ephemeral"}},
    {"type": "custom", "name": "add", "input_schema": {"type": "object"}},
]
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Ask", "parameters": CITY}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}},
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln 😀"}}\n</tool_call>'
ADD = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
WEATHER = ("tool_use", {"city": "Köln 😀"}, "get_weather")

Shape = tuple[str, Any, str | None]


def added(arguments: str) -> str:
    return f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>'


# what is said, the blocks that it becomes (type, text or input, and name), and the reason for the end
ANSWERS = [
    pytest.param("Yes.", [("text", "Yes.", None)], "end_turn", id="text"),
    pytest.param("", [("text", "", None)], "end_turn", id="nothing"),
    pytest.param(CALL, [WEATHER], "tool_use", id="call"),
    pytest.param(
        f"<think>\nHm, so\n</think>\nI ask.\n{CALL}\n{ADD}\nThat is it.",
        [
            ("thinking", "Hm, so", None),
            ("text", "I ask.", None),
            WEATHER,
            ("tool_use", {}, "add"),
            ("text", "\nThat is it.", None),
        ],
        "tool_use",
        id="everything",
    ),
    pytest.param("<think>Hm", [("thinking", "Hm", None)], "end_turn", id="thinking"),
    pytest.param(added('{"a": nope}'), [("text", 'add {"a": nope}', None)], "end_turn", id="no-json"),
    pytest.param(CALL + added('{"a": NaN}'), [WEATHER, ("text", 'add {"a": NaN}', None)], "tool_use", id="no-number"),
    pytest.param(added(r'{"a": "\ud800"}'), [("text", r'add {"a": "\ud800"}', None)], "end_turn", id="half-character"),
    pytest.param(added(f'{{"a": {2**70}}}'), [("tool_use", {"a": 2**70}, "add")], "tool_use", id="long-number"),
    pytest.param(added('{"a": "1\n2"}'), [("tool_use", {"a": "1\n2"}, "add")], "tool_use", id="line-end"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(replay_url: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=replay_url, api_key="x", max_retries=0) as client:
        yield client


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": 400,
        "messages": [{"role": "user", "content": said(text)}],
        "tools": TOOLS,
        **fields,
    }


def shape(block: Any) -> Shape:
    """Type, content and name of a block that the package has read."""
    if block.type == "tool_use":
        assert block.id.startswith("call_")
        return block.type, block.input, block.name
    if block.type == "thinking":
        assert block.signature == ""
        return block.type, block.thinking, None
    return block.type, block.text, None


@pytest.mark.parametrize(("text", "blocks", "reason"), ANSWERS)
async def test_answer_has_a_block_for_each_part(
    client: AsyncAnthropic, text: str, blocks: list[Shape], reason: str
) -> None:
    message = await client.messages.create(**asking(text))

    assert [shape(block) for block in message.content] == blocks
    assert message.stop_reason == reason


@pytest.mark.parametrize(("text", "blocks", "reason"), ANSWERS)
async def test_stream_opens_fills_and_closes_each_block(
    client: AsyncAnthropic, text: str, blocks: list[Shape], reason: str
) -> None:
    events: list[Any] = [event async for event in await client.messages.create(**asking(text), stream=True)]
    async with client.messages.stream(**asking(text)) as stream:
        message = await stream.get_final_message()

    # the package has put together what the events say
    assert [shape(block) for block in message.content] == blocks
    assert message.stop_reason == reason
    start, *rest, delta, stop = events
    assert (start.type, delta.type, stop.type) == ("message_start", "message_delta", "message_stop")
    assert delta.delta.stop_reason == reason
    for index, (kind, _, _) in enumerate(blocks):
        size = next(place for place, event in enumerate(rest) if event.type == "content_block_stop") + 1
        of_block, rest = rest[:size], rest[size:]
        assert [event.index for event in of_block] == [index] * size
        assert [event.type for event in of_block] == [
            "content_block_start",
            *["content_block_delta"] * (size - 2),
            "content_block_stop",
        ]
        assert shape(of_block[0].content_block)[:2] == (kind, {} if kind == "tool_use" else "")
        names = {"tool_use": "input_json_delta", "thinking": "thinking_delta", "text": "text_delta"}
        assert {event.delta.type for event in of_block[1:-1]} <= {names[kind]}
    assert rest == []


async def test_result_is_sent_back_with_the_whole_message(client: AsyncAnthropic, replay: httpx.AsyncClient) -> None:
    body = asking(f"<think>Hm.</think>I ask.{CALL}{ADD}")
    first = await client.messages.create(**body)
    weather, add = [block.id for block in first.content if block.type == "tool_use"]
    results = [
        {"type": "text", "text": said("It rains.")},
        {"type": "tool_result", "tool_use_id": weather, "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": add, "is_error": True},
    ]
    asked = body["messages"][0]
    body["messages"] = [asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    calls = [
        {"id": weather, "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln 😀"}'}},
        {"id": add, "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assistant = {"role": "assistant", "content": "I ask.", "reasoning_content": "Hm.", "tool_calls": calls}
    same = [
        asked,
        assistant,
        {"role": "tool", "tool_call_id": weather, "content": "rain"},
        {"role": "tool", "tool_call_id": add, "content": ""},
        {"role": "user", "content": said("It rains.")},
    ]

    final = await client.messages.create(**body)
    count = await client.messages.count_tokens(model=MODEL, messages=body["messages"], tools=TOOLS)

    chat_body = {"model": MODEL, "messages": same, "tools": CHAT_TOOLS}
    chat = (await replay.post("/v1/chat/completions", json=chat_body)).json()
    assert [shape(block) for block in final.content] == [("text", "It rains.", None)]
    assert chat["choices"][0]["message"]["content"] == "It rains."
    assert count.input_tokens == chat["usage"]["prompt_tokens"]
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == count.input_tokens


@pytest.mark.parametrize(
    ("model", "choice"),
    [("hermes", "auto"), ("hermes", "none"), ("plain", "auto"), ("plain", "any"), ("text_arguments", "any")],
)
async def test_count_is_that_of_the_message(client: AsyncAnthropic, model: str, choice: Any) -> None:
    body = asking("Yes.", model=f"echo/{model}", tool_choice={"type": choice})

    message = await client.messages.create(**body)
    del body["max_tokens"]
    count = await client.messages.count_tokens(**body)

    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == count.input_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_call_that_the_limit_cuts_is_text(client: AsyncAnthropic, stream: bool) -> None:
    body = asking(CALL, max_tokens=50)
    if stream:
        async with client.messages.stream(**body) as events:
            message = await events.get_final_message()
    else:
        message = await client.messages.create(**body)

    (block,) = message.content
    assert message.stop_reason == "max_tokens"
    assert block.type == "text"
    assert block.text.startswith("get_weather {")


async def test_choice_is_chat_s(client: AsyncAnthropic) -> None:
    one: Any = {"type": "auto", "disable_parallel_tool_use": True}

    several = await client.messages.create(**asking(CALL + ADD, tool_choice={"type": "auto"}))
    single = await client.messages.create(**asking(CALL + ADD, tool_choice=one))
    none = await client.messages.create(**asking(CALL, tool_choice={"type": "none"}))
    # a model that does not think, as one that must not go on as it would may begin to
    named = await client.messages.create(
        **{**asking(CALL, tool_choice={"type": "tool", "name": "add"}), "model": "echo/plain"}
    )

    assert [shape(block) for block in several.content] == [WEATHER, ("tool_use", {}, "add")]
    assert [shape(block) for block in single.content] == [WEATHER]
    assert [shape(block) for block in none.content] == [("text", CALL, None)]
    assert [block.name for block in named.content] == ["add"]  # type: ignore[union-attr]
    assert named.stop_reason == "tool_use"


async def test_thinking_reaches_the_template(client: AsyncAnthropic) -> None:
    enabled: Any = {"type": "enabled", "budget_tokens": 1024}

    thought = await client.messages.create(**asking("so</think>Yes.", thinking=enabled))
    disabled = await client.messages.create(**asking("so</think>Yes.", thinking={"type": "disabled"}))

    # this template opens the thinking where it is wanted
    assert [shape(block) for block in thought.content] == [("thinking", "so", None), ("text", "Yes.", None)]
    assert [shape(block) for block in disabled.content] == [("text", "so</think>Yes.", None)]


USE = {"type": "tool_use", "id": "1", "name": "add", "input": {}}
BAD_SCHEMA = {"type": "object", "properties": {"a": {"minContains": 1}}}


def turns(*later: tuple[str, list[Any]]) -> dict[str, Any]:
    first = {"role": "user", "content": "x"}
    return {"messages": [first, *({"role": role, "content": content} for role, content in later)]}


@pytest.mark.parametrize(
    ("fields", "said_of"),
    [
        pytest.param({"tools": 5}, "'tools'", id="number"),
        pytest.param({"tools": [{"name": "f"}]}, "'tools[0].input_schema'", id="no-schema"),
        pytest.param({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124'", id="server-tool"),
        pytest.param({"tools": [*TOOLS, TOOLS[0]]}, "'tools[2].name'", id="same-name"),
        pytest.param(
            {"tools": [{"name": "f", "input_schema": {"type": "array"}}]}, "'tools[0].input_schema'", id="array"
        ),
        pytest.param(
            {"tools": [{"name": "f", "input_schema": BAD_SCHEMA}], "tool_choice": {"type": "any"}},
            "minContains",
            id="schema",
        ),
        pytest.param({"tool_choice": {"type": "any"}}, "'tool_choice'", id="no-tools"),
        pytest.param({"tools": TOOLS, "tool_choice": {"type": "all"}}, "'tool_choice.type'", id="choice"),
        pytest.param({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "'tool_choice.name'", id="no-name"),
        pytest.param(
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "'tool_choice.name'", id="unknown-name"
        ),
        pytest.param({"thinking": {"type": "often"}}, "'thinking.type'", id="thinking"),
        pytest.param(
            turns(("user", [{"type": "tool_result", "tool_use_id": "1"}])),
            "'messages[1].content[0].tool_use_id'",
            id="result-of-nothing",
        ),
        pytest.param(turns(("user", [USE])), "'messages[1].content[0]'", id="call-by-user"),
        pytest.param(turns(("assistant", [USE])), "'messages[1].content'", id="call-at-the-end"),
        pytest.param(turns(("assistant", [{**USE, "input": "x"}])), "'messages[1].content[0].input'", id="input-text"),
        pytest.param(
            turns(
                ("assistant", [USE]),
                ("user", [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}]),
            ),
            "'messages[2].content[0].content[0]'",
            id="image-in-result",
        ),
        pytest.param(turns(("user", [{"type": "document"}])), "'tool_result'", id="document"),
    ],
)
async def test_bad_field_is_refused_in_anthropic_s_words(
    replay: httpx.AsyncClient, fields: dict[str, Any], said_of: str
) -> None:
    answer = await replay.post("/v1/messages", json={"model": MODEL, "max_tokens": 9, **turns(), **fields})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert said_of in error["message"]
    assert "function." not in error["message"]
