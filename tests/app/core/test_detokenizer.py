"""Token by token, the text is the one of decoding all at once, and no character is ever cut."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.core.detokenizer import Detokenizer

TEXTS = [
    "Once upon a time there was a little dog.",
    " leading and  double blanks \n\n lines ",
    "emoji 👩‍👩‍👧‍👦 and 😀😀 and ü, 中文字符, עברית",
    "\ttabs\r\nand NUL \x00 inside",
]


def pieces(tokenizer: Tokenizer, prompt_ids: list[int], ids: list[int]) -> list[str]:
    """What each token adds, and the flush."""
    detokenizer = Detokenizer(tokenizer, prompt_ids)
    return [*(detokenizer.feed(token_id) for token_id in ids), detokenizer.flush()]


def test_deltas_concatenate_to_the_whole_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        prompt_ids = tokenizer.encode("The dog said:").ids
        ids = tokenizer.encode(" " + text, add_special_tokens=False).ids
        whole = tokenizer.decode(prompt_ids + ids)[len(tokenizer.decode(prompt_ids)) :]

        assert "".join(pieces(tokenizer, prompt_ids, ids)) == whole


def test_leading_blank_of_the_first_token_is_kept(sentence_piece: Tokenizer) -> None:
    prompt_ids = sentence_piece.encode("The little").ids
    ids = sentence_piece.encode("dog", add_special_tokens=False).ids

    assert "".join(pieces(sentence_piece, prompt_ids, ids)) == " dog"


def test_no_piece_holds_part_of_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀é中", add_special_tokens=False).ids

    out = pieces(tokenizer, tokenizer.encode("Hi").ids, ids)

    assert len(ids) > 3
    assert not any("\ufffd" in piece for piece in out)
    assert "".join(out).strip() == "😀é中"


def test_character_that_the_prompt_began_is_completed(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("😀", add_special_tokens=False).ids

    assert "".join(pieces(byte_level, ids[:2], ids[2:])) == "😀"


def test_bytes_that_never_become_a_character_come_out_at_the_end(byte_level: Tokenizer) -> None:
    half = byte_level.encode("😀", add_special_tokens=False).ids[:2]

    assert pieces(byte_level, byte_level.encode("Hi").ids, half) == ["", "", "\ufffd"]


def test_endless_invalid_bytes_are_let_out_now_and_then(byte_level: Tokenizer) -> None:
    lone = byte_level.encode("😀", add_special_tokens=False).ids[1]
    detokenizer = Detokenizer(byte_level, byte_level.encode("Hi").ids)

    out = [detokenizer.feed(lone) for _ in range(100)]

    assert "".join(out).count("\ufffd") > 80


def test_special_tokens_have_no_text_and_cost_no_blank(sentence_piece: Tokenizer) -> None:
    eos = sentence_piece.token_to_id("</s>")
    dog = sentence_piece.encode("dog", add_special_tokens=False).ids
    prompt_ids = sentence_piece.encode("The").ids

    for count in (1, 5, 200):
        assert "".join(pieces(sentence_piece, prompt_ids, [*dog, *[eos] * count, *dog])) == " dog dog"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text, add_special_tokens=False).ids

    assert "".join(pieces(byte_level, byte_level.encode("Hi:").ids, ids)) == text
