"""The openai package, unmodified."""

from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

MODEL = "echo/main"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "The little dog"}]


@pytest.fixture
async def client(served: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served}/v1", api_key="anything", max_retries=0) as client:
        yield client


async def test_chat_streamed_and_whole_say_the_same(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=12)
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )

    said, usage = "", None
    async for chunk in stream:
        said += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage

    message = whole.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", said, None)
    assert "The little dog" in said
    assert whole.choices[0].finish_reason == "length"
    assert usage is not None
    assert usage.completion_tokens == 12 == whole.usage.completion_tokens  # type: ignore[union-attr]


async def test_chat_logprobs_have_text_bytes_and_alternatives(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=3
    )

    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert len(content) == 5
    for token in content:
        assert bytes(token.bytes or []).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob == max(top.logprob for top in token.top_logprobs)


async def test_several_choices_come_in_order(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, n=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


async def test_completion_of_ids(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=3, temperature=0)

    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)


async def test_default_of_a_completion_is_16_tokens(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=MODEL, prompt="The dog")

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    one = await client.models.retrieve(MODEL)

    assert listed[0].id == one.id == MODEL
    assert one.owned_by == "slimserve"


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_model_is_not_found_and_the_nearest_is_named(client: AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="echo/mian", messages=MESSAGES, stream=stream)

    assert caught.value.code == "model_not_found"
    assert "echo/main" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_prompt_is_said_as_clients_expect(client: AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "dog " * 5000}], stream=stream
        )

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "This model's maximum context length is 4096 tokens. However, you requested" in caught.value.message


async def test_model_that_is_not_loaded_is_unavailable(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="slimstory", messages=MESSAGES)

    assert (caught.value.status_code, caught.value.code) == (503, "model_not_loaded")
    assert int(caught.value.response.headers["retry-after"]) <= 120
