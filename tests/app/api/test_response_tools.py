"""Calls and thinking on /v1/responses with the openai package: the echo model says what a model would."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.responses import Response
from replay_server import said

# one server, and so one event loop, for all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "echo/hermes"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "name": "get_weather", "description": "Ask", "parameters": CITY, "strict": True},
    {"type": "function", "name": "add", "parameters": None, "strict": None},
]
ARGUMENTS = '{"city": "Köln 😀"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
ADD = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
# what is said, and the items that it becomes: type, text or arguments, and name
ANSWERS = [
    pytest.param("Yes.", [("message", "Yes.", None)], id="text"),
    pytest.param("", [("message", "", None)], id="nothing"),
    pytest.param(CALL, [("function_call", ARGUMENTS, "get_weather")], id="call"),
    pytest.param(
        f"<think>\nHm, so\n</think>\nI ask.\n{CALL}\n{ADD}\nThat is it.",
        [
            ("reasoning", "Hm, so", None),
            ("message", "I ask.", None),
            ("function_call", ARGUMENTS, "get_weather"),
            ("function_call", "{}", "add"),
            ("message", "\nThat is it.", None),
        ],
        id="everything",
    ),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(replay_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{replay_url}/v1", api_key="x", max_retries=0) as client:
        yield client


def shape(item: Any) -> tuple[str, str, str | None]:
    """Type, text and name of an item that the package has read."""
    if item.type == "function_call":
        return item.type, item.arguments, item.name
    (part,) = item.content
    assert part.type == ("reasoning_text" if item.type == "reasoning" else "output_text")
    return item.type, part.text, None


@pytest.mark.parametrize(("text", "items"), ANSWERS)
async def test_answer_has_an_item_for_each_part(
    client: AsyncOpenAI, text: str, items: list[tuple[str, str, str | None]]
) -> None:
    answer = await client.responses.create(model=MODEL, input=said(text), tools=TOOLS)

    assert [shape(item) for item in answer.output] == items
    assert answer.status == "completed"
    assert {item.status for item in answer.output} == {"completed"}  # type: ignore[union-attr]
    assert len({item.id for item in answer.output}) == len(items)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert all(call.call_id.startswith("call_") for call in calls)
    assert [tool.name for tool in answer.tools] == ["get_weather", "add"]  # type: ignore[union-attr]
    assert answer.usage is not None
    assert (answer.usage.output_tokens_details.reasoning_tokens > 0) == (items[0][0] == "reasoning")
    assert Response.model_validate(answer.model_dump())


async def test_arguments_that_no_grammar_holds_are_what_the_model_wrote(client: AsyncOpenAI) -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": nope}}</tool_call>'

    answer = await client.responses.create(
        model=MODEL, input=said(text), tools=[{**tool, "strict": False} for tool in TOOLS]
    )

    assert [shape(item) for item in answer.output] == [("function_call", '{"a": nope}', "add")]


@pytest.mark.parametrize(("text", "items"), ANSWERS)
async def test_stream_opens_fills_and_closes_each_item(
    client: AsyncOpenAI, text: str, items: list[tuple[str, str, str | None]]
) -> None:
    stream = await client.responses.create(model=MODEL, input=said(text), tools=TOOLS, stream=True)
    events: list[Any] = [event async for event in stream]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1].response
    assert [shape(item) for item in last.output] == items
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    rest = events[2:-1]
    for index, item in enumerate(last.output):
        of_item = [event for event in rest if event.output_index == index]
        # items do not overlap
        assert of_item == rest[: len(of_item)]
        rest = rest[len(of_item) :]
        check_item(of_item, item)
    assert rest == []


def check_item(events: list[Any], item: Any) -> None:
    """The events of one item: added and empty, filled, done and whole."""
    name = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}[
        item.type
    ]
    deltas = [event for event in events if event.type == f"response.{name}.delta"]
    part_added, part_done = (
        ([], []) if item.type == "function_call" else (["response.content_part.added"], ["response.content_part.done"])
    )
    assert [event.type for event in events] == [
        "response.output_item.added",
        *part_added,
        *[f"response.{name}.delta"] * len(deltas),
        f"response.{name}.done",
        *part_done,
        "response.output_item.done",
    ]
    _, text, _ = shape(item)
    assert "".join(event.delta for event in deltas) == text
    done = events[len(part_added) + len(deltas) + 1]
    assert (done.arguments if item.type == "function_call" else done.text) == text
    added = events[0].item
    assert (added.status, added.arguments if item.type == "function_call" else added.content) == (
        "in_progress",
        "" if item.type == "function_call" else [],
    )
    assert events[-1].item == item
    assert {event.item_id for event in events[1:-1]} == {added.id} == {item.id}


async def test_package_s_own_helper_collects_the_stream(client: AsyncOpenAI) -> None:
    text = f"<think>Hm.</think>I ask.{CALL}"
    async with client.responses.stream(model=MODEL, input=said(text), tools=TOOLS) as stream:
        async for _ in stream:
            pass
        answer = await stream.get_final_response()

    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.output[-1].arguments == ARGUMENTS  # type: ignore[union-attr]


async def test_result_is_sent_back_with_the_whole_output(client: AsyncOpenAI, replay: httpx.AsyncClient) -> None:
    asked: list[Any] = [{"role": "user", "content": said(f"<think>Hm.</think>I ask.{CALL}")}]
    first = await client.responses.create(model=MODEL, input=asked, tools=TOOLS)
    (_, message, call) = first.output
    assert call.type == "function_call"
    asked += [item.model_dump(exclude_none=True) for item in first.output]
    asked.append({"type": "function_call_output", "call_id": call.call_id, "output": said("It rains.")})
    body = {
        "model": MODEL,
        "messages": [
            asked[0],
            {
                "role": "assistant",
                "content": "I ask.",
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": ARGUMENTS},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": said("It rains.")},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "get_weather", "description": "Ask", "parameters": CITY, "strict": True},
            },
            {"type": "function", "function": {"name": "add"}},
        ],
    }

    final = await client.responses.create(model=MODEL, input=asked, tools=TOOLS)
    chat = (await replay.post("/v1/chat/completions", json=body)).json()

    assert message.type == "message"
    assert final.output_text == chat["choices"][0]["message"]["content"] == "It rains."
    assert final.usage is not None
    assert final.usage.input_tokens == chat["usage"]["prompt_tokens"]


async def test_calls_side_by_side_are_one_message(client: AsyncOpenAI, replay: httpx.AsyncClient) -> None:
    def call(number: int) -> dict[str, Any]:
        return {"type": "function_call", "call_id": f"call_{number}", "name": "add", "arguments": "{}"}

    def output(number: int) -> dict[str, Any]:
        content = [{"type": "input_text", "text": said("Done.")}]
        return {"type": "function_call_output", "call_id": f"call_{number}", "output": content}

    items: Any = [{"role": "user", "content": "go"}, call(1), call(2), output(1), output(2)]

    answer = await client.responses.create(model=MODEL, input=items)

    function = {"name": "add", "arguments": "{}"}
    calls = [{"id": f"call_{number}", "type": "function", "function": function} for number in (1, 2)]
    messages: list[Any] = [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": f"call_{number}", "content": said("Done.")} for number in (1, 2)]
    count = (await replay.post("/tokenize", json={"model": MODEL, "messages": messages})).json()["count"]
    assert answer.usage is not None
    assert answer.usage.input_tokens == count
    assert answer.output_text == "Done."


@pytest.mark.parametrize("stream", [False, True])
async def test_item_that_the_limit_cuts_is_incomplete(client: AsyncOpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"model": MODEL, "input": said(f"Hm.{CALL}"), "tools": TOOLS, "max_output_tokens": 50}
    if stream:
        events: list[Any] = [event async for event in await client.responses.create(**fields, stream=True)]
        assert events[-1].type == "response.incomplete"
        assert events[-2].item.status == "incomplete"
        answer = events[-1].response
    else:
        answer = await client.responses.create(**fields)

    assert answer.status == "incomplete"
    assert [item.status for item in answer.output] == ["completed", "incomplete"]
    assert ARGUMENTS.startswith(answer.output[1].arguments)


async def test_choice_and_parallel_calls_are_chat_s(client: AsyncOpenAI) -> None:
    one = await client.responses.create(model=MODEL, input=said(CALL + ADD), tools=TOOLS, parallel_tool_calls=False)
    none = await client.responses.create(model=MODEL, input=said(CALL), tools=TOOLS, tool_choice="none")
    named = await client.responses.create(
        # a model that does not think, as one that must not go on as it would may begin to
        model="echo/plain",
        input=said(CALL),
        tools=TOOLS,
        tool_choice={"type": "function", "name": "add"},
    )

    assert [item.type for item in one.output] == ["function_call"]
    assert one.parallel_tool_calls is False
    assert none.output_text == CALL
    assert none.tool_choice == "none"
    (call,) = named.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("add", {})
    assert named.tool_choice.model_dump() == {"type": "function", "name": "add"}  # type: ignore[union-attr]


async def test_logprobs_are_those_of_the_text(client: AsyncOpenAI) -> None:
    text = f"<think>Hm.</think>I ask.{CALL}"

    answer = await client.responses.create(model=MODEL, input=said(text), tools=TOOLS, top_logprobs=0)

    message: Any = answer.output[1]
    # with the marker before it, which has no text of its own
    assert "".join(entry.token for entry in message.content[0].logprobs) == "</think>I ask."


BAD_SCHEMA = {"type": "object", "properties": {"a": {"minContains": 1}}}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        pytest.param({"tools": 5}, "invalid_type", "tools", id="number"),
        pytest.param({"tools": [None]}, "invalid_type", "tools[0]", id="null"),
        pytest.param({"tools": [{}]}, "missing_required_parameter", "tools[0].name", id="nothing"),
        pytest.param({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type", id="web-search"),
        pytest.param({"tools": TOOLS * 65}, "array_above_max_length", "tools", id="130"),
        pytest.param({"tools": [*TOOLS, TOOLS[0]]}, "invalid_value", "tools[2].name", id="same-name"),
        pytest.param(
            {"tools": [{**TOOLS[0], "parameters": {"type": "array"}}]},
            "invalid_schema",
            "tools[0].parameters",
            id="array",
        ),
        pytest.param(
            {"tools": [{**TOOLS[0], "parameters": BAD_SCHEMA}], "tool_choice": "required"},
            "invalid_schema",
            "tools[0].parameters",
            id="schema",
        ),
        pytest.param({"tool_choice": "required"}, "invalid_value", "tool_choice", id="no-tools"),
        pytest.param({"tools": TOOLS, "tool_choice": "any"}, "invalid_value", "tool_choice", id="choice"),
        pytest.param(
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "unsupported_parameter",
            "tool_choice.type",
            id="allowed-tools",
        ),
        pytest.param(
            {"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}},
            "invalid_value",
            "tool_choice.name",
            id="unknown-name",
        ),
        pytest.param(
            {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
            "invalid_value",
            "input[0].call_id",
            id="output-of-nothing",
        ),
        pytest.param(
            {"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]},
            "missing_required_parameter",
            "input[0].name",
            id="call-without-name",
        ),
        pytest.param({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_content", "input[0]", id="item"),
        pytest.param({"input": [None]}, "invalid_type", "input[0]", id="item-null"),
        pytest.param(
            {"input": [{"type": "reasoning", "content": [{"type": "text", "text": "x"}]}]},
            "unsupported_content",
            "input[0].content[0]",
            id="thought",
        ),
        pytest.param(
            {"tools": TOOLS, "tool_choice": "required", "text": {"format": {"type": "json_object"}}},
            "invalid_value",
            "text.format",
            id="no-room",
        ),
    ],
)
async def test_bad_field_is_refused_in_this_route_s_words(
    replay: httpx.AsyncClient, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = await replay.post("/v1/responses", json={"model": MODEL, "input": "x", **fields})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)
    assert "function." not in error["message"]
