"""langchain-openai: messages in and out, streams, structured output."""

import pytest

from tests.clients.asking import MODEL, QUESTION, Pet

langchain_openai = pytest.importorskip("langchain_openai", reason="needs langchain-openai: run `make clients`")


@pytest.fixture
def chat(base_url: str) -> "langchain_openai.ChatOpenAI":
    return langchain_openai.ChatOpenAI(
        model=MODEL, base_url=base_url, api_key="unused", temperature=0, max_tokens=60, max_retries=0
    )


def test_invoke_and_stream_say_the_same(chat: "langchain_openai.ChatOpenAI") -> None:
    whole = chat.invoke(QUESTION)
    chunks = list(chat.stream(QUESTION, stream_usage=True))

    assert "".join(chunk.content for chunk in chunks) == whole.content != ""
    assert whole.response_metadata["finish_reason"] in ("stop", "length")
    (usage,) = (chunk.usage_metadata for chunk in chunks if chunk.usage_metadata)
    assert usage["total_tokens"] == whole.usage_metadata["total_tokens"]


async def test_batch_at_once(chat: "langchain_openai.ChatOpenAI") -> None:
    answers = await chat.abatch([QUESTION] * 4)

    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_instance(chat: "langchain_openai.ChatOpenAI", method: str) -> None:
    answer = chat.bind(max_tokens=200).with_structured_output(Pet, method=method).invoke(QUESTION)

    assert isinstance(answer, Pet)


def test_too_long_a_prompt_is_recognised(chat: "langchain_openai.ChatOpenAI") -> None:
    exceptions = pytest.importorskip("langchain_core.exceptions")

    with pytest.raises(exceptions.ContextOverflowError):
        chat.invoke("dog " * 2000)


def test_bound_tools_are_called(chat: "langchain_openai.ChatOpenAI") -> None:
    answer = chat.bind_tools([Pet], tool_choice="any").bind(max_tokens=200).invoke(QUESTION)

    (call,) = answer.tool_calls
    assert call["name"] == "Pet"
    assert Pet(**call["args"])


def test_streamed_tool_call_is_put_together(chat: "langchain_openai.ChatOpenAI") -> None:
    bound = chat.bind_tools([Pet], tool_choice="Pet").bind(max_tokens=200)

    total = None
    for chunk in bound.stream(QUESTION):
        total = chunk if total is None else total + chunk

    assert total is not None
    assert Pet(**total.tool_calls[0]["args"])
