"""The openai package for Python, in whichever major version is installed."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.asking import MESSAGES, MODEL, Pet
from tests.e2e.cli_server import CliServer


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=600) as client:
        yield client


def test_chat_streamed_and_whole_say_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=60, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=60,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == whole.choices[0].message.content != ""
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_stream_helper_collects_the_answer(client: OpenAI) -> None:
    # the helper takes an answer that was cut for an error, so this one stops by itself
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_tokens=200, temperature=0, stop=["."]
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion()

    assert "".join(deltas) == answer.choices[0].message.content != ""


def test_completions_of_two_prompts(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Once upon", "The dog"], max_tokens=8, logprobs=2, n=2)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == 8 for choice in answer.choices)
    assert answer.usage.completion_tokens == 4 * 8


def test_parse_gives_an_instance_of_the_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Pet, max_tokens=200, temperature=0
    )

    assert isinstance(answer.choices[0].message.parsed, Pet)


def test_parse_of_a_cut_answer_raises(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Pet, max_tokens=2)


async def test_sixteen_requests_at_once(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="unused", timeout=600) as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30, temperature=0)
                for _ in range(16)
            )
        )

    assert len({answer.choices[0].message.content for answer in answers}) == 1


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "slimstori"}, openai.NotFoundError, "model_not_found", "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "integer_below_min_value", "max_tokens"),
        ({"temperature": 9}, openai.BadRequestError, "decimal_above_max_value", "temperature"),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"modalities": ["audio"]}, openai.BadRequestError, "unsupported_parameter", "modalities"),
        ({"max_tokens": 5000}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
    ],
    ids=["model", "max-tokens", "temperature", "messages", "modalities", "context"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_error_is_of_the_class_that_clients_catch(
    client: OpenAI, fields: dict[str, object], kind: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, "stream": stream, **fields})

    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")
    assert caught.value.request_id


def test_model_that_is_still_loading_is_tried_again_until_it_answers(server: CliServer, base_url: str) -> None:
    """The server answers 503 with Retry-After at once: it does not wait for loads here."""
    with OpenAI(base_url=base_url, api_key="unused", max_retries=30, timeout=600) as client:
        client.post("/unload", body={"model": MODEL}, cast_to=object)

        answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=4)

    assert answer.retries_taken >= 1
    assert answer.parse().usage.completion_tokens == 4
    assert server.variant(answer.parse().model)["state"] == "ready"


def test_conflict_is_not_tried_again(base_url: str) -> None:
    sent: list[str] = []
    with (
        openai.DefaultHttpxClient(event_hooks={"request": [lambda request: sent.append(str(request.url))]}) as http,
        OpenAI(base_url=base_url, api_key="unused", max_retries=3, http_client=http) as client,
    ):
        model = client.models.list().data[0].id

        with pytest.raises(openai.ConflictError) as caught:
            client.delete(f"/variants/{model}", cast_to=object)

    assert caught.value.code == "variant_protected"
    assert len(sent) == 2
