"""Structured output as its users meet it: a real server, the embedded model, the openai package, jsonschema."""

import asyncio
import json
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal

import httpx
import jsonschema
import openai
import pytest
from cli_server import CliServer, running_server
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field
from random_schemas import random_schema

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

MODEL = "slimstory"
CHAT = "/v1/chat/completions"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me about a little dog."}]
NUM_SCHEMAS = 40
# Longer answers than this are cut.
MAX_TOKENS = 320
AT_ONCE = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: CliServer) -> Iterator[OpenAI]:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0, timeout=600, http_client=http) as client,
    ):
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, **fields}


def with_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return chat(response_format=response_format, **fields)


async def answers(server: CliServer, path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first choice of each answer, in order. Some at a time, so that they run in one batch."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        async with turn:
            answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as http:
        return list(await asyncio.gather(*(ask(http, body) for body in bodies)))


async def test_random_schemas_are_kept_at_every_seed_and_temperature(server: CliServer) -> None:
    schemas = [random_schema(seed) for seed in range(NUM_SCHEMAS)]
    temperatures = [0.0, 0.7, 1.3]
    bodies = [with_schema(schema, seed=seed, temperature=temperatures[seed % 3]) for seed, schema in enumerate(schemas)]

    choices = await answers(server, CHAT, bodies)

    whole = [
        (schema, choice) for schema, choice in zip(schemas, choices, strict=True) if choice["finish_reason"] == "stop"
    ]
    for schema, choice in whole:
        value = json.loads(choice["message"]["content"])
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)
        assert list(value) == [name for name in schema["properties"] if name in value]
    # the model may write a long number or name; nearly every answer ends by itself
    assert len(whole) >= 0.9 * NUM_SCHEMAS


async def test_same_seed_says_the_same_alone_and_in_a_batch(server: CliServer) -> None:
    probe = with_schema(random_schema(1), seed=5, temperature=1.0)
    others = [chat(seed=seed, max_tokens=60) for seed in range(3)] + [with_schema(random_schema(9), seed=1)]

    alone = await answers(server, CHAT, [probe])
    batched = await answers(server, CHAT, [*others, probe])

    assert batched[-1]["message"]["content"] == alone[0]["message"]["content"]


async def test_any_object_is_an_object(server: CliServer) -> None:
    options: dict[str, Any] = {"response_format": {"type": "json_object"}, "temperature": 0.7, "max_tokens": 160}
    bodies = [chat(**options, seed=seed) for seed in range(4)]

    choices = await answers(server, CHAT, bodies)

    for choice in choices:
        content = choice["message"]["content"]
        assert content.startswith("{")
        assert re.search(r"[ \n]{23}", content) is None
        assert choice["finish_reason"] == "length" or isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    ("field", "pattern"),
    [
        pytest.param({"structured_outputs": {"regex": r"[A-Z][a-z]{2,8} \d{1,3}(\.\d{2})? €"}}, None, id="regex"),
        pytest.param({"structured_outputs": {"choice": ["yes", "no", "größer 10"]}}, "yes|no|größer 10", id="choice"),
        pytest.param({"structured_outputs": {"grammar": 'start: "<" N ">"\nN: /[0-9]{1,5}/'}}, "<\\d{1,5}>", id="lark"),
        pytest.param({"guided_regex": "(a|b){2,9}c"}, None, id="guided-regex"),
        pytest.param({"guided_choice": ["red", "redder"]}, "red(der)?", id="guided-choice"),
    ],
)  # fmt: skip
async def test_text_matches_as_a_whole_on_every_route(
    server: CliServer, field: dict[str, Any], pattern: str | None
) -> None:
    expected = pattern or field.get("guided_regex") or field["structured_outputs"]["regex"]
    seeds = [{"seed": seed, "temperature": 1.0, "max_tokens": 60} for seed in range(6)]

    said = await answers(server, CHAT, [chat(**{**field, **options}) for options in seeds])
    texts = [choice["message"]["content"] for choice in said]
    prompt = {"model": MODEL, "prompt": "The dog", **field}
    completed = await answers(server, "/v1/completions", [{**prompt, **options} for options in seeds])
    texts += [choice["text"] for choice in completed]
    if "structured_outputs" in field:
        async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as http:
            own = [(await http.post("/v1/generate", json={**prompt, **options})).json() for options in seeds]
        texts += [answer["text"] for answer in own]

    assert all(re.fullmatch(expected, text) for text in texts), texts


async def test_every_choice_of_a_request_is_held(server: CliServer) -> None:
    body = chat(structured_outputs={"regex": "[a-z]{5}"}, n=4, seed=3, logprobs=True, top_logprobs=2)

    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as http:
        answer = (await http.post(CHAT, json=body)).json()

    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert all(re.fullmatch("[a-z]{5}", content) for content in contents)
    assert len(set(contents)) > 1
    for choice, content in zip(answer["choices"], contents, strict=True):
        assert "".join(token["token"] for token in choice["logprobs"]["content"]) == content
        assert choice["finish_reason"] == "stop"


def test_streamed_answer_is_the_whole_one(client: OpenAI) -> None:
    schema = random_schema(4)
    options: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "seed": 11}
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}

    whole = client.chat.completions.create(**options, response_format=response_format)
    with client.chat.completions.create(**options, response_format=response_format, stream=True) as stream:
        chunks = list(stream)

    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason] == ["stop"]


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    colour: Colour


class Story(BaseModel):
    """What pydantic makes of nesting, enums, optional fields and unions."""

    title: Annotated[str, Field(max_length=12)]
    hero: Cat | Dog
    friends: Annotated[list[Dog], Field(max_length=2)]
    moral: Annotated[str, Field(max_length=12)] | None


@pytest.mark.parametrize("seed", range(3))
def test_pydantic_model_is_parsed_by_the_openai_package(client: OpenAI, seed: int) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Story, seed=seed, temperature=0.5
    )

    assert parsed.choices[0].message.refusal is None
    assert isinstance(parsed.choices[0].message.parsed, Story)


def test_refused_schema_is_a_bad_request_to_the_openai_package(client: OpenAI) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}

    with pytest.raises(openai.BadRequestError, match="'not'") as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=response_format)

    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format.json_schema.schema")


async def test_cut_answer_says_so(server: CliServer) -> None:
    (choice,) = await answers(server, CHAT, [with_schema(random_schema(0), max_tokens=2)])

    assert choice["finish_reason"] == "length"


async def test_stop_string_ends_a_held_answer_too(server: CliServer) -> None:
    (choice,) = await answers(server, CHAT, [chat(structured_outputs={"regex": "abc-def-ghi"}, stop=["-g"])])

    assert (choice["message"]["content"], choice["finish_reason"]) == ("abc-def", "stop")
