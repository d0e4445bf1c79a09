"""Thinking is split from the answer, wherever the stream is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import Said, cut, read

from app.core.tools.calls import FAMILIES, CallParser
from app.core.tools.output import NamedCallOutput, PlainOutput
from app.core.tools.reasoning import MARKERS, ReasoningParser

# is_open, text, reasoning, content
CASES = [
    (False, "<think>\nhm, 2 < 3\n</think>\n\nYes.", "hm, 2 < 3", "Yes."),
    (False, "\n<think>\n\n</think>\n\nYes.", "", "Yes."),
    (False, "Yes, I <think> so.", "", "Yes, I <think> so."),
    (False, "<think>cut off </thi", "cut off </thi", ""),
    (False, "<thi", "", "<thi"),
    (False, "<think>a</think>b</think>", "a", "b</think>"),
    (True, "hm\n</think>\nYes.", "hm", "Yes."),
    (True, "<think>\nhm</think>Yes.\n", "hm", "Yes.\n"),
    (True, "\n", "", ""),
    (True, "still at it", "still at it", ""),
]


def parser(*, is_open: bool) -> ReasoningParser:
    return ReasoningParser(MARKERS["think"], PlainOutput(), is_open=is_open)


@pytest.mark.parametrize(("is_open", "text", "reasoning", "content"), CASES)
def test_thinking_comes_apart_from_the_answer(is_open: bool, text: str, reasoning: str, content: str) -> None:
    assert read(parser(is_open=is_open), text) == Said(content, reasoning, [])


@given(st.sampled_from(CASES), st.lists(st.integers(0, 60), max_size=20))
def test_pieces_give_what_the_whole_gives(case: tuple[bool, str, str, str], places: list[int]) -> None:
    is_open, text, reasoning, content = case

    assert read(parser(is_open=is_open), *cut(text, places)) == Said(content, reasoning, [])


@given(
    st.booleans(),
    st.lists(st.sampled_from(["<think>", "</think>", "<", "think", "\n", " ", "a"]), max_size=12).map("".join),
    st.lists(st.integers(0, 90), max_size=20),
)
def test_nonsense_does_not_depend_on_the_pieces(is_open: bool, text: str, places: list[int]) -> None:
    assert read(parser(is_open=is_open), *cut(text, places)) == read(parser(is_open=is_open), text)


def test_only_the_answer_can_hold_calls() -> None:
    call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    rest = CallParser(FAMILIES["hermes"], {"add": None})
    text = f"<think>shall I {call}?</think>\n\n{call}"

    assert read(ReasoningParser(MARKERS["think"], rest, is_open=False), *text) == Said(
        "", f"shall I {call}?", [("add", "{}")]
    )


def test_it_is_reasoning_between_the_markers() -> None:
    reader = parser(is_open=False)

    seen = []
    for piece in ("<think>", "hm", "</think>", "Yes"):
        reader.feed(piece)
        seen.append(reader.is_reasoning)

    assert seen == [True, True, False, False]


@pytest.mark.parametrize("pieces", [['{"a": ', "1}"], ['{"a": 1}'], []], ids=["two", "one", "none"])
def test_named_call_is_all_of_the_text(pieces: list[str]) -> None:
    assert read(NamedCallOutput("add"), *pieces).calls == [("add", "".join(pieces))]
