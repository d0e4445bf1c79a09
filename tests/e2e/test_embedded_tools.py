"""Calls that must be made, by a model that has never heard of tools: the grammar sees to it."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from cli_server import running_server
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

MODEL = "slimstory"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a little dog."}]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "walk",
            "parameters": {
                "type": "object",
                "properties": {
                    "animal": {"$ref": "#/$defs/animal"},
                    "steps": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["animal", "steps"],
                "$defs": {"animal": {"enum": ["dog", "cat"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "sleep"}},
]
NAMED = {"type": "function", "function": {"name": "walk"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        running_server(tmp_path_factory.mktemp("server")) as server,
        # a proxy of the environment cannot reach this machine's own loopback
        openai.DefaultHttpxClient(trust_env=False) as http,
        OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0, timeout=600, http_client=http) as client,
    ):
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=150,
        tools=TOOLS,
        temperature=1.0,
        **fields,  # type: ignore[arg-type]
    )


def check(name: str, arguments: str) -> None:
    """The arguments are what the function's schema allows."""
    value = json.loads(arguments)
    if name == "sleep":
        assert value == {}
    else:
        assert name == "walk"
        assert value.keys() == {"animal", "steps"}
        assert value["animal"] in ("dog", "cat")
        assert isinstance(value["steps"], int)
        assert 1 <= value["steps"] <= 99


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("is_parallel", [True, False], ids=["several", "one"])
def test_enforced_calls_keep_to_the_schema(client: OpenAI, choice: Any, is_parallel: bool, seed: int) -> None:
    answer = ask(client, tool_choice=choice, parallel_tool_calls=is_parallel, seed=seed)

    (found,) = answer.choices
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    calls = found.message.tool_calls
    assert 1 <= len(calls) <= (16 if is_parallel and choice == "required" else 1)
    for call in calls:
        check(call.function.name, call.function.arguments)
        assert choice == "required" or call.function.name == "walk"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_streamed_calls_are_those_of_the_whole_answer(client: OpenAI, choice: Any) -> None:
    whole = ask(client, tool_choice=choice, seed=5).choices[0]
    names: list[str] = []
    arguments: list[str] = []

    chunks = list(ask(client, tool_choice=choice, seed=5, stream=True))

    for piece in (piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()):
        if piece.id is not None:
            assert piece.index == len(names)
            names.append(piece.function.name)
            arguments.append("")
        arguments[piece.index] += piece.function.arguments
    assert names == [call.function.name for call in whole.message.tool_calls]
    assert arguments == [call.function.arguments for call in whole.message.tool_calls]
    # the first piece, and more than one of arguments
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 2
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason == "tool_calls"


def test_model_that_does_not_call_just_answers(client: OpenAI) -> None:
    answer = ask(client, seed=1)

    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.content


def test_the_story_goes_on_after_a_call(client: OpenAI) -> None:
    called = ask(client, tool_choice=NAMED, seed=2).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "The dog is at the park."}

    answer = client.chat.completions.create(
        model=MODEL,
        messages=[*MESSAGES, called.model_dump(exclude_none=True), result],  # type: ignore[list-item]
        max_tokens=40,
        tools=TOOLS,  # type: ignore[arg-type]
    )

    assert answer.choices[0].message.content
