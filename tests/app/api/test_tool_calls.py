"""Calls and thinking over HTTP: the echo model says what each family would, streamed and not."""

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from replay_server import said, saying
from sse_reading import stream

# one server, and so one event loop, for all tests
pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Ask", "parameters": CITY}},
    {"type": "function", "function": {"name": "add"}},
]
STRICT_TOOLS = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln 😀"}}\n</tool_call>'
LLAMA_CALL = '{"name": "get_weather", "parameters": {"city": "Köln 😀"}}'
WEATHER = ("get_weather", '{"city": "Köln 😀"}')

Call = tuple[str, str]


async def whole(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def calls_of(message: dict[str, Any]) -> list[Call]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


async def joined(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The message that a stream's deltas make, and its finish_reason; every delta obeys the rules of streams."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    reasons: list[str | None] = []
    chunks = await stream(http, CHAT, body)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for chunk in chunks[1:]:
        (choice,) = chunk["choices"]
        reasons.append(choice["finish_reason"])
        delta = choice["delta"]
        message["content"] += delta.get("content", "")
        assert delta.get("reasoning_content") == delta.get("reasoning")
        message["reasoning"] += delta.get("reasoning", "")
        for piece in delta.get("tool_calls", []):
            if "id" in piece:
                assert piece["index"] == len(message["tool_calls"])
                assert piece["id"].startswith("call_")
                assert piece["type"] == "function"
                message["tool_calls"].append({"id": piece["id"], "function": dict(piece["function"])})
            else:
                assert piece.keys() == {"index", "function"}
                assert piece["function"].keys() == {"arguments"}
                assert piece["index"] == len(message["tool_calls"]) - 1
                message["tool_calls"][-1]["function"]["arguments"] += piece["function"]["arguments"]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert chunks[-1]["choices"][0]["delta"] == {}
    return message, str(reasons[-1])


@pytest.mark.parametrize(
    ("model", "text", "content", "calls"),
    [
        pytest.param("hermes", f"I look.\n\n{HERMES_CALL}", "I look.", [WEATHER], id="hermes"),
        pytest.param("hermes", f"{HERMES_CALL}\n{HERMES_CALL}", None, [WEATHER] * 2, id="hermes-two"),
        pytest.param(
            "qwen3_coder",
            "Shall I? Yes.</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln 😀\n</parameter>\n"
            "</function>\n</tool_call>",
            None,
            [WEATHER],
            id="qwen3-coder",
        ),
        pytest.param("llama3", LLAMA_CALL, None, [WEATHER], id="llama3"),
        pytest.param("llama3", f"<|python_tag|>{LLAMA_CALL}; {LLAMA_CALL}", None, [WEATHER] * 2, id="llama3-tag"),
        pytest.param(
            "mistral", '[TOOL_CALLS][{"name": "add", "arguments": {}}]', None, [("add", "{}")], id="mistral-list"
        ),
        pytest.param(
            "mistral",
            'On it.[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]add[ARGS]{}',
            "On it.",
            [("add", '{"a": 1}'), ("add", "{}")],
            id="mistral-named",
        ),
        pytest.param("plain", '{"name": "add", "arguments": {}}', None, [("add", "{}")], id="json"),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, STRICT_TOOLS], ids=["loose", "strict"])
async def test_calls_of_every_family_come_back_streamed_and_not(
    replay: httpx.AsyncClient, model: str, text: str, content: str | None, calls: list[Call], tools: Any
) -> None:
    body = saying(f"echo/{model}", text, tools=tools)

    choice = (await whole(replay, body))["choices"][0]
    message, reason = await joined(replay, body)

    assert (choice["message"]["content"], calls_of(choice["message"])) == (content, calls)
    assert (message["content"], calls_of(message)) == (content or "", calls)
    assert choice["finish_reason"] == reason == "tool_calls"
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == len(calls)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("hermes", "<tool_call>{'name': 'add', 'arguments': {}}</tool_call>"),
        ("hermes", '<tool_call>{"name": "add", "argum'),
        ("mistral", "[TOOL_CALLS]what is this?"),
        ("llama3", "<|python_tag|>print(1)"),
        ("plain", '{"name": "Alice", "age": 3}'),
        ("hermes", "No call <tool at all\n"),
    ],
)
async def test_what_is_no_call_is_content(replay: httpx.AsyncClient, model: str, text: str) -> None:
    body = saying(f"echo/{model}", text, tools=TOOLS)

    choice = (await whole(replay, body))["choices"][0]
    message, reason = await joined(replay, body)

    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert (message["content"], message["tool_calls"]) == (text, [])
    assert choice["finish_reason"] == reason == "stop"


async def test_no_call_is_looked_for_where_none_is_wanted(replay: httpx.AsyncClient) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = (await whole(replay, saying("echo/hermes", HERMES_CALL, **fields)))["choices"][0]

        assert choice["message"]["content"] == HERMES_CALL
        assert choice["finish_reason"] == "stop"


async def test_special_tokens_stay_hidden_where_no_call_is_looked_for(replay: httpx.AsyncClient) -> None:
    choice = (await whole(replay, saying("echo/mistral", "[TOOL_CALLS]add[ARGS]{}")))["choices"][0]

    assert choice["message"]["content"] == "add{}"


async def test_call_that_the_limit_cuts_ends_by_length(replay: httpx.AsyncClient) -> None:
    choice = (await whole(replay, saying("echo/hermes", HERMES_CALL, tools=TOOLS, max_tokens=50)))["choices"][0]

    assert choice["finish_reason"] == "length"
    assert WEATHER[1].startswith(calls_of(choice["message"])[0][1])


async def test_one_call_where_calls_are_not_parallel(replay: httpx.AsyncClient) -> None:
    body = saying("echo/hermes", HERMES_CALL * 2, tools=TOOLS, parallel_tool_calls=False)

    assert calls_of((await whole(replay, body))["choices"][0]["message"]) == [WEATHER]
    assert calls_of((await joined(replay, body))[0]) == [WEATHER]


@pytest.mark.parametrize("model", ["hermes", "text_arguments"], ids=["by-the-model", "by-the-prompt"])
async def test_thinking_is_told_apart_and_counted(replay: httpx.AsyncClient, model: str) -> None:
    begin = "<think>\n" if model == "hermes" else ""
    body = saying(f"echo/{model}", f"{begin}2 < 3, so\n</think>\n\nYes.")

    answer = await whole(replay, body)
    message, reason = await joined(replay, body)

    (choice,) = answer["choices"]
    assert choice["message"]["content"] == message["content"] == "Yes."
    assert (
        choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == message["reasoning"] == "2 < 3, so"
    )
    assert choice["finish_reason"] == reason == "stop"
    # one token per byte, and one for each marker
    num_thinking = len(begin.replace("<think>", "x")) + len("2 < 3, so\n") + 1
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": num_thinking}


async def test_thinking_comes_before_a_call(replay: httpx.AsyncClient) -> None:
    body = saying("echo/hermes", f"<think>I need it.</think>\n{HERMES_CALL}", tools=TOOLS)

    message, reason = await joined(replay, body)

    assert (message["reasoning"], message["content"], calls_of(message)) == ("I need it.", "", [WEATHER])
    assert reason == "tool_calls"


async def test_answer_that_never_stops_thinking_has_no_content(replay: httpx.AsyncClient) -> None:
    choice = (await whole(replay, saying("echo/text_arguments", "hm " * 9, max_tokens=5)))["choices"][0]

    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"] == "hm hm"
    body = saying("echo/text_arguments", "Yes.")
    sent_back = {**body, "messages": [body["messages"][0], choice["message"], body["messages"][0]]}
    assert (await replay.post(CHAT, json=sent_back)).status_code == 200


async def test_load_chooses_the_parsers(replay: httpx.AsyncClient) -> None:
    body = saying("echo/plain", f"<think>so</think>{HERMES_CALL}", tools=TOOLS)
    options = {"tool_parser": "hermes", "reasoning_parser": "think"}

    before = (await whole(replay, body))["choices"][0]["message"]
    variant = (await replay.post("/v1/load", json={"model": "echo/plain", **options})).json()
    after = (await whole(replay, body))["choices"][0]["message"]
    await replay.post("/v1/load", json={"model": "echo/plain", "tool_parser": "auto", "reasoning_parser": "auto"})

    assert before["content"] == f"<think>so</think>{HERMES_CALL}"
    assert (variant["tool_parser"], variant["reasoning_parser"]) == ("hermes", "think")
    assert (after["content"], after["reasoning"], calls_of(after)) == (None, "so", [WEATHER])


async def test_each_choice_has_its_own_calls(replay: httpx.AsyncClient) -> None:
    answer = await whole(replay, saying("echo/hermes", HERMES_CALL, tools=TOOLS, n=2))

    assert [calls_of(choice["message"]) for choice in answer["choices"]] == [[WEATHER], [WEATHER]]


async def test_logprobs_of_a_stream_are_those_of_all_tokens(replay: httpx.AsyncClient) -> None:
    body = saying("echo/hermes", f"Hm.{HERMES_CALL}", tools=TOOLS, logprobs=True)

    answer = await whole(replay, body)
    chunks = await stream(replay, CHAT, body)

    entries = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert [entry["token"] for entry in entries] == [
        entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]
    ]


async def test_openai_client_reads_calls_and_sends_the_result_back(replay: httpx.AsyncClient) -> None:
    client = AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=replay, max_retries=0)
    body = saying("echo/hermes", HERMES_CALL, tools=TOOLS)

    answer = await client.chat.completions.create(**body)
    message = answer.choices[0].message
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": said("It rains.")}
    body["messages"] += [message.model_dump(exclude_none=True), result]
    final = await client.chat.completions.create(**body)

    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Köln 😀"}  # type: ignore[union-attr]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.content == "It rains."


async def test_tokenize_counts_the_tools(replay: httpx.AsyncClient) -> None:
    body = {"model": "echo/hermes", "messages": [{"role": "user", "content": "hi"}]}

    counts = [
        (await replay.post("/tokenize", json={**body, **more})).json()["count"] for more in ({}, {"tools": TOOLS})
    ]

    assert counts[1] > counts[0] + 100
