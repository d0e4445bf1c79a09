"""Thinking before an output that a grammar forms: free up to its end, and then what was asked for."""

import json

import pytest
from byte_tokens import SPECIAL_TOKENS, accepts

from app.core.tools.thought import Thought, behind_thinking
from app.renderer.grammars import check
from workers.protocol.specs import Grammar

OPENED = Thought(markers=("<think>", "</think>"), is_open=True)
NOT_OPENED = Thought(markers=("<think>", "</think>"), is_open=False)
SPECIAL = Thought(markers=("[THINK]", "[/THINK]"), is_open=False)

SCHEMA = Grammar(
    kind="json_schema", text='{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
)
# a grammar, what it allows and what it does not
KINDS = [
    pytest.param(SCHEMA, '{"a": 1}', '{"a": "1"}', id="json_schema"),
    pytest.param(Grammar(kind="json_schema", text="true"), "[1]", "[1", id="any-json"),
    pytest.param(Grammar(kind="json_object"), '{"a": "}"}', "[]", id="json_object"),
    pytest.param(Grammar(kind="regex", text=r"a/b\/c\\/[/]"), r"a/b/c\//", "a/b", id="regex-slashes"),
    pytest.param(Grammar(kind="regex", text="a\nb\\\nc\\nd"), "a\nb\nc\nd", "anb", id="regex-lines"),
    pytest.param(Grammar(kind="choice", text=json.dumps(['say "yes"', "no\n/"])), "no\n/", "yes", id="choice"),
    pytest.param(
        Grammar(kind="lark", text='start: "{" answer? "}" // }\nanswer: /[}]/ | start'), "{{}}}", "{}}}", id="lark"
    ),
]


@pytest.mark.parametrize(("grammar", "right", "wrong"), KINDS)
@pytest.mark.parametrize(
    ("thought", "thinking"),
    [
        pytest.param(OPENED, "Hm <think> {", id="open"),
        pytest.param(NOT_OPENED, "<think>Hm [/THINK] {", id="not-open"),
        pytest.param(SPECIAL, "⟦[THINK]⟧Hm </think> ⟦<|channel|>⟧", id="special"),
        pytest.param(SPECIAL, "[THINK]", id="spelled"),
    ],
)
def test_output_is_what_was_asked_for_behind_any_thinking(
    grammar: Grammar, right: str, wrong: str, thought: Thought, thinking: str
) -> None:
    found = behind_thinking(grammar, thought, SPECIAL_TOKENS)
    end = "⟦[/THINK]⟧" if thinking.startswith("⟦") else thought.markers[1]

    check(found, tuple(SPECIAL_TOKENS.items()))
    for gap in ("", "\n", "\n\n"):
        assert accepts(found, f"{thinking}{end}{gap}{right}")
    assert not accepts(found, f"{thinking}{end}{wrong}")
    assert not accepts(found, f"{thinking}{end}{right}{right}")
    assert not accepts(found, f"{thinking}{end}")
    assert not accepts(found, thinking)
    assert accepts(found, right) is not thought.is_open
    assert not accepts(found, wrong)


def test_nothing_but_an_end_of_line_may_surround_the_thinking() -> None:
    found = behind_thinking(SCHEMA, NOT_OPENED, SPECIAL_TOKENS)

    assert not accepts(found, '\n{"a": 1}')
    assert not accepts(found, '\n<think>x</think>{"a": 1}')
    assert not accepts(found, '<think>x</think>\n\n\n{"a": 1}')
