"""The embedded model as a user of the openai package meets it: `slimserve serve`, then a chat."""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from cli_server import running_server
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from app import embedded

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

MODEL = "slimstory"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about a little dog."}]
NUM_TOKENS = 80


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with (
        running_server(tmp_path_factory.mktemp("server")) as server,
        # a proxy of the environment cannot reach this machine's own loopback
        openai.DefaultHttpxClient(trust_env=False) as http,
        OpenAI(base_url=f"{server.url}/v1", api_key="anything", max_retries=0, timeout=600, http_client=http) as client,
    ):
        yield client


def share_of_known_words(text: str) -> float:
    """The share of words that the texts that come with the model have too."""
    known = set(words(embedded.heldout_text() + embedded.calibration_text()))
    found = words(text)
    return sum(word in known for word in found) / len(found)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def test_banning_every_token_is_the_requests_own_fault(client: OpenAI) -> None:
    every_token = {str(token_id): -100 for token_id in range(416)}

    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, logit_bias=every_token)

    assert caught.value.code == "no_valid_token"


def test_models_list_names_the_embedded_model_first(client: OpenAI) -> None:
    first = next(iter(client.models.list()))

    assert first.id.startswith(f"{MODEL}/")


def test_chat_answers_in_english_words(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=NUM_TOKENS, temperature=0.7, top_p=0.9, seed=3
    )

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.content is not None
    assert len(words(choice.message.content)) > 20
    # 99.7 % over many answers (the model's card); one answer may have a made-up word or two
    assert share_of_known_words(choice.message.content) > 0.9
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_chat_says_in_pieces_what_the_whole_one_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=NUM_TOKENS, temperature=0)

    with client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=NUM_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)

    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 20
    assert "".join(pieces) == whole.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_unknown_model_is_the_exception_that_the_package_has_for_it(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="slimstory") as error:
        client.chat.completions.create(model="slimstori", messages=MESSAGES)

    assert error.value.code == "model_not_found"


def test_response_that_ends_by_itself_is_completed(client: OpenAI) -> None:
    # more than any story has
    fields: dict[str, Any] = {"model": MODEL, "input": "Tell me a story about a little dog.", "temperature": 0}
    whole = client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()

    assert (whole.status, whole.incomplete_details) == ("completed", None)
    assert kinds[-1] == "response.completed"
    assert final.output_text == whole.output_text
    assert len(words(whole.output_text)) > 20
