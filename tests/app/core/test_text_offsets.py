"""Offsets of tokens in the text of a completion, for both families of tokenizers."""

import json

import pytest
from tokenizers import Tokenizer

from app import embedded
from app.core.text_offsets import TextOffsets
from app.core.token_strings import TokenStrings

EMBEDDED = Tokenizer.from_str((embedded.model_path() / "tokenizer.json").read_text("utf-8"))


def strings_of(tokenizer: Tokenizer) -> TokenStrings:
    return TokenStrings(tokenizer, json.loads(tokenizer.to_str()))


def begins(strings: TokenStrings, token_id: int, text: str) -> bool:
    """Whether the text can begin with this token: with all of it, or with the character that it is a part of."""
    content = strings.utf8(token_id)
    if strings.text(token_id).startswith("bytes:"):
        return content in text[:1].encode()
    return text.startswith((strings.text(token_id), strings.text(token_id).removeprefix(" ")))


@pytest.mark.parametrize("text", ["Once upon a time", " Once", "  a", "é 🎈 dog", "🎈🎈", "a\n\nb\t", "日本", ""])
def test_tokens_of_an_echoed_text_begin_where_they_stand(tokenizer: Tokenizer, text: str) -> None:
    strings = strings_of(tokenizer)
    ids = tokenizer.encode(text).ids

    offsets = TextOffsets(strings).add_prompt(ids, text)

    shown = [pair for pair in zip(ids, offsets, strict=True) if not strings.is_special(pair[0])]
    assert offsets == sorted(offsets)
    assert all(begins(strings, token_id, text[offset:]) for token_id, offset in shown)
    assert {offset for _, offset in shown} <= set(range(len(text)))


def test_special_tokens_count_where_the_echoed_text_shows_them() -> None:
    text = "<|user|>hi<|end|>"
    ids = EMBEDDED.encode(text).ids
    shown = TextOffsets(strings_of(EMBEDDED)).add_prompt(ids, text)

    # the first is the beginning, which nobody has written
    assert [text[place:] for place in shown] == [text, text, "hi<|end|>", "i<|end|>", "<|end|>"]

    decoded = EMBEDDED.decode(ids, skip_special_tokens=False)

    assert TextOffsets(strings_of(EMBEDDED)).add_prompt(ids, decoded)[:3] == [0, len("<|bos|>"), len("<|bos|><|user|>")]


def test_generated_tokens_go_on_behind_the_prompt_and_over_chunks() -> None:
    strings, balloon = strings_of(EMBEDDED), EMBEDDED.encode("🎈", add_special_tokens=False).ids
    (comma,) = EMBEDDED.encode(",", add_special_tokens=False).ids
    offsets = TextOffsets(strings)

    assert offsets.add_prompt(EMBEDDED.encode("hi").ids, "hi, 🎈") == [0, 0, 1]
    assert offsets.add([comma]) == [2]
    assert offsets.add([*balloon, comma]) == [3] * len(balloon) + [4]


def test_first_generated_token_has_lost_its_blank_where_the_text_has(sentence_piece: Tokenizer) -> None:
    strings = strings_of(sentence_piece)
    word = sentence_piece.encode("dog", add_special_tokens=False).ids
    assert strings.text(word[0]).startswith(" ")

    assert TextOffsets(strings).add([*word, *word], "dog dog")[len(word)] == 3
    assert TextOffsets(strings).add([*word, *word], " dog dog")[len(word)] == 4
