"""LiteLLM as a client of an OpenAI-compatible server."""

from typing import Any

import pytest

from tests.clients.asking import MESSAGES, MODEL, Pet

litellm = pytest.importorskip("litellm", reason="needs litellm: run `make clients`")


@pytest.fixture
def request_fields(base_url: str) -> dict[str, Any]:
    return {
        "model": f"openai/{MODEL}",
        "api_base": base_url,
        "api_key": "unused",
        "messages": MESSAGES,
        "max_tokens": 60,
        "temperature": 0,
        "num_retries": 0,
    }


def test_completion_streamed_and_whole_say_the_same(request_fields: dict[str, Any]) -> None:
    whole = litellm.completion(**request_fields)
    chunks = list(litellm.completion(**request_fields, stream=True, stream_options={"include_usage": True}))

    rebuilt = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content != ""
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens > 0


async def test_text_completion(request_fields: dict[str, Any]) -> None:
    fields = {**request_fields, "model": f"text-completion-openai/{MODEL}", "prompt": "Once upon a time"}
    del fields["messages"]

    answer = await litellm.atext_completion(**fields)

    assert answer.choices[0].text


def test_schema_is_kept(request_fields: dict[str, Any]) -> None:
    answer = litellm.completion(**request_fields, response_format=Pet)

    assert Pet.model_validate_json(answer.choices[0].message.content)


def test_tool_is_called(request_fields: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "feed", "parameters": {"type": "object", "properties": {}}}}

    answer = litellm.completion(**request_fields, tools=[tool], tool_choice="required")

    assert answer.choices[0].message.tool_calls[0].function.name == "feed"


def test_errors_are_litellms_own(request_fields: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**request_fields, "messages": [{"role": "user", "content": "dog " * 2000}]})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**request_fields, "model": "openai/slimstori"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**request_fields, "top_p": 7})
