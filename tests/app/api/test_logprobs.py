"""Log probabilities as JSON has them."""

import json
import math

import pytest
from tokenizers import Tokenizer

from app import embedded
from app.api.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from app.core.token_strings import TokenStrings
from workers.protocol.messages import TokenLogprob

# a token that could not come, such as one that a bias or a grammar excludes
NEVER = TokenLogprob(token_id=20, logprob=-math.inf, top=[(21, -0.25), (22, -math.inf)])


@pytest.fixture(scope="module")
def strings() -> TokenStrings:
    source = (embedded.model_path() / "tokenizer.json").read_text("utf-8")
    return TokenStrings(Tokenizer.from_str(source), json.loads(source))


def test_minus_infinity_is_a_number_that_every_client_can_read(strings: TokenStrings) -> None:
    (chat,) = chat_logprobs([NEVER], 20, strings)["content"]
    lists = CompletionLogprobs(20, strings).lists([20], [NEVER])
    (prompt,) = prompt_logprobs([NEVER], strings)

    assert chat["logprob"] == -9999.0
    assert [top["logprob"] for top in chat["top_logprobs"]] == [-0.25, -9999.0]
    assert lists["token_logprobs"] == [-9999.0]
    assert lists["top_logprobs"] == [
        {strings.text(21): -0.25, strings.text(22): -9999.0, strings.text(20): -9999.0},
    ]
    assert prompt is not None
    assert [entry["logprob"] for entry in prompt.values()] == [-0.25, -9999.0, -9999.0]


def test_token_outside_the_alternatives_is_an_extra_key(strings: TokenStrings) -> None:
    entry = TokenLogprob(token_id=20, logprob=-3.0, top=[(21, -0.25)])

    (top,) = CompletionLogprobs(1, strings).lists([20], [entry])["top_logprobs"]
    (none_asked,) = CompletionLogprobs(0, strings).lists([20], [entry])["top_logprobs"]

    assert top == {strings.text(21): -0.25, strings.text(20): -3.0}
    assert none_asked == {strings.text(20): -3.0}


def test_offsets_go_on_over_chunks_and_a_prompt_s_first_token_has_nothing(strings: TokenStrings) -> None:
    entry = TokenLogprob(token_id=20, logprob=-3.0)
    logprobs = CompletionLogprobs(0, strings)

    first, second = logprobs.lists([21, 20], [None, entry]), logprobs.lists([20], [entry])

    assert first["text_offset"] == [0, len(strings.text(21))]
    assert second["text_offset"] == [len(strings.text(21)) + len(strings.text(20))]
    assert (first["token_logprobs"][0], first["top_logprobs"][0]) == (None, None)


def test_offsets_count_special_tokens_only_where_the_text_shows_them(strings: TokenStrings) -> None:
    bos, entry = 1, TokenLogprob(token_id=20, logprob=-3.0)
    assert strings.is_special(bos)

    hidden = CompletionLogprobs(0, strings).lists([bos, 20], [None, entry])
    shown = CompletionLogprobs(0, strings, shows_special=True).lists([bos, 20], [None, entry])

    assert hidden["text_offset"] == [0, 0]
    assert shown["text_offset"] == [0, len(strings.text(bos))]
