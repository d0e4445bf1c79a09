"""Text is free and calls are not, in every family: what the grammar lets pass is what the parser reads as calls."""

import json
from typing import Any

import jsonschema
import pytest
from byte_tokens import SPECIAL_TOKENS, accepts
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read

from app.core.tools.calls import FAMILIES, CallParser
from app.core.tools.strict import Thought, strict_grammar
from app.core.tools.use import Tool, ToolUse
from app.renderer.grammars import check
from workers.protocol.specs import Grammar

WALK: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "required": ["a"],
    "$defs": {"x": {"enum": [1]}},
}
TOOLS = (
    Tool(name="walk", parameters=WALK, strict=True),
    Tool(name="walk_far", parameters=WALK),
    Tool(name="sleep", strict=True),
)
A1 = '{"a": 1}'
OPEN, CLOSE = "<tool_call>", "</tool_call>"
TAGGED = "<function=walk>\n<parameter=a>\n1\n</parameter>\n</function>"


def call(name: str = "walk", arguments: str = A1, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def marked(*calls: str) -> str:
    return "\n".join(f"{OPEN}\n{one}\n{CLOSE}" for one in calls)


def grammar_of(family: str, *, is_parallel: bool = True, thought: Thought | None = None) -> Grammar:
    return strict_grammar(ToolUse(tools=TOOLS, is_parallel=is_parallel), FAMILIES[family], SPECIAL_TOKENS, thought)


# family, text, names of the calls that are read in it; None if the text is not allowed
CASES = [
    # text
    *[pytest.param(name, "", [], id=f"{name}-nothing") for name in FAMILIES],
    *[pytest.param(name, "Héllo <tool\n😀 [1] {x}", [], id=f"{name}-text") for name in FAMILIES],
    *[pytest.param(name, "⟦<|channel|>⟧a⟦<|channel|>⟧⟦</s>⟧", [], id=f"{name}-special") for name in FAMILIES],
    # a marker
    pytest.param("hermes", marked(call()), ["walk"], id="hermes"),
    pytest.param("hermes", f"Let us go.\n{marked(call())} Done.", ["walk"], id="hermes-in-text"),
    pytest.param("hermes", marked(call(), call("sleep", "{}")), ["walk", "sleep"], id="hermes-two"),
    pytest.param("hermes", f"{OPEN}{call(key='parameters')}{CLOSE}", ["walk"], id="hermes-tight"),
    pytest.param("hermes", f'{OPEN}{{"name":"walk","arguments":{{"a":1}}}}{CLOSE}', ["walk"], id="hermes-no-blanks"),
    pytest.param("hermes", marked(call("walk_far", '{"b": [2]}')), ["walk_far"], id="hermes-not-strict"),
    pytest.param("hermes", marked(call("walk_far", "[2]")), None, id="hermes-not-strict-no-object"),
    pytest.param("hermes", marked(call("run")), None, id="hermes-unknown"),
    pytest.param("hermes", marked(call(arguments='{"a": 2}')), None, id="hermes-against-the-schema"),
    pytest.param("hermes", marked(call("sleep", A1)), None, id="hermes-argument-of-none"),
    pytest.param("hermes", f"{OPEN}\nI see", None, id="hermes-no-call"),
    pytest.param("hermes", f"{OPEN}\n{call()}", None, id="hermes-no-end"),
    pytest.param("hermes", f"{OPEN}\n{call()}{call()}{CLOSE}", None, id="hermes-two-in-one"),
    pytest.param("hermes", marked(call(), call("run")), None, id="hermes-second-unknown"),
    # tags
    pytest.param("qwen3_coder", marked(TAGGED), ["walk"], id="tags"),
    pytest.param("qwen3_coder", f"So: {OPEN}{TAGGED}{CLOSE}{marked(TAGGED)}", ["walk"] * 2, id="tags-two"),
    pytest.param("qwen3_coder", marked(TAGGED.replace("1", "2")), None, id="tags-against-the-schema"),
    pytest.param("qwen3_coder", marked("<function=walk>\n</function>"), None, id="tags-missing"),
    pytest.param("qwen3_coder", marked(TAGGED.replace("=a", "=b")), None, id="tags-other"),
    pytest.param("qwen3_coder", marked(TAGGED.replace("walk", "run")), None, id="tags-unknown"),
    pytest.param("qwen3_coder", marked("<function=sleep>\n</function>"), ["sleep"], id="tags-none"),
    pytest.param(
        "qwen3_coder", marked(TAGGED.replace("walk", "walk_far").replace("=a", "=b")), ["walk_far"], id="tags-free"
    ),
    # Llama's marker, and JSON as the whole answer
    pytest.param("llama3", f"⟦<|python_tag|>⟧{call(key='parameters')}", ["walk"], id="tag"),
    pytest.param("llama3", f"I go.<|python_tag|> {call()}; {call()}", ["walk"] * 2, id="tag-spelled"),
    pytest.param("llama3", "⟦<|python_tag|>⟧print(1)", None, id="tag-code"),
    pytest.param("llama3", f"⟦<|python_tag|>⟧{call('run')}", None, id="tag-unknown"),
    pytest.param("llama3", f"⟦<|python_tag|>⟧{call()} I went", None, id="tag-text-behind"),
]
for family in ("llama3", "json"):
    CASES += [
        pytest.param(family, call(), ["walk"], id=f"{family}-bare"),
        pytest.param(family, f"\n {call()}; {call('sleep', '{}')}", ["walk", "sleep"], id=f"{family}-bare-two"),
        pytest.param(family, f"[{call()}, {call()}]", ["walk"] * 2, id=f"{family}-list"),
        pytest.param(family, f"⟦<|channel|>⟧{call()}", ["walk"], id=f"{family}-behind-special"),
        pytest.param(family, f'{{"type": "function", {call()[1:]}', ["walk"], id=f"{family}-type"),
        pytest.param(family, call("run"), [], id=f"{family}-unknown-is-text"),
        pytest.param(family, '{"b": 2}', [], id=f"{family}-json-is-text"),
        pytest.param(family, '[1, {"name": "walk"}]', [], id=f"{family}-list-is-text"),
        pytest.param(family, f"So: {call(arguments='{}')}", [], id=f"{family}-inner-json-is-text"),
        pytest.param(family, '{"arguments": {}, "name": "walk"}', [], id=f"{family}-arguments-first-are-text"),
        pytest.param(family, '{"n\\u0061me": "walk", "arguments": {}}', [], id=f"{family}-escaped-key-is-text"),
        pytest.param(family, '{"name": "w\\u0061lk", "arguments": {}}', [], id=f"{family}-escaped-name-is-text"),
        pytest.param(family, '{"id": 5, "name": "walk", "arguments": {}}', [], id=f"{family}-id-of-no-text-is-text"),
        pytest.param(family, '{"name": "walk"}', None, id=f"{family}-no-arguments"),
        pytest.param(family, call(arguments="{}"), None, id=f"{family}-against-the-schema"),
        pytest.param(family, f"\x1c\u2003[ ;{call(arguments='{}')}]", None, id=f"{family}-odd-blanks"),
        pytest.param(family, f"{call()} and more", None, id=f"{family}-text-behind"),
        pytest.param(family, f"{call()}; {call('run')}", None, id=f"{family}-second-unknown"),
    ]
for begin, args, ident in (
    ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ("⟦[TOOL_CALLS]⟧", "⟦[ARGS]⟧", "⟦[CALL_ID]⟧"),
):
    kind = "special" if "⟦" in begin else "spelled"
    CASES += [
        pytest.param("mistral", f"{begin}[{call()}]", ["walk"], id=f"mistral-{kind}-list"),
        pytest.param("mistral", f"Yes.{begin} [{call()}, {call()}]", ["walk"] * 2, id=f"mistral-{kind}-list-two"),
        pytest.param("mistral", f'{begin}[{call()[:-1]}, "id": "x1"}}]', ["walk"], id=f"mistral-{kind}-list-id"),
        pytest.param("mistral", f"{begin}[]", None, id=f"mistral-{kind}-list-empty"),
        pytest.param("mistral", f"{begin}[{call('run')}]", None, id=f"mistral-{kind}-list-unknown"),
        pytest.param("mistral", f"{begin}walk{args}{A1}", ["walk"], id=f"mistral-{kind}-named"),
        pytest.param("mistral", f"{begin}walk{A1}", ["walk"], id=f"mistral-{kind}-named-alone"),
        pytest.param("mistral", f"{begin}walk{ident}x1y{args}{A1}", ["walk"], id=f"mistral-{kind}-named-id"),
        pytest.param(
            "mistral",
            f"{begin}walk_far{args}{{}}{begin}sleep{args}{{}}",
            ["walk_far", "sleep"],
            id=f"mistral-{kind}-named-two",
        ),
        pytest.param("mistral", f"{begin}walk{args}{{}}", None, id=f"mistral-{kind}-against-the-schema"),
        pytest.param("mistral", f"{begin}run{args}{{}}", None, id=f"mistral-{kind}-named-unknown"),
        pytest.param("mistral", f"{begin}I see", None, id=f"mistral-{kind}-no-call"),
        pytest.param("mistral", f"{begin}walk{args}{A1} text", None, id=f"mistral-{kind}-text-behind"),
    ]


@pytest.mark.parametrize(("family", "text", "names"), CASES)
def test_grammar_lets_pass_what_the_parser_reads(family: str, text: str, names: list[str] | None) -> None:
    functions = ToolUse(tools=TOOLS).functions

    assert accepts(grammar_of(family), text) == (names is not None)

    if names is not None:
        visible = text.replace("⟦<|channel|>⟧", "").replace("⟦</s>⟧", "").replace("⟦", "").replace("⟧", "")
        found = read(CallParser(FAMILIES[family], functions, is_held=True), *visible)
        assert [name for name, _ in found.calls] == names
        assert names or found.content == visible


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "walk",
        "run",
        " ",
        "\n",
        "\x1c",
        ";",
        ",",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        '"',
        ":",
        "text",
        TAGGED,
        TAGGED.replace("1", "2"),
        "<function=walk>",
        "</function>",
        A1,
        "{}",
    ),
    *(
        call(),
        call("run"),
        call(arguments="{}"),
        call("walk_far", "{}"),
        '{"name": "walk"',
        ', "arguments": ',
        '"name": ',
    ),
    *('{"arguments": {}, ', '{"type": "function", ', '"id": 1, ', '"na\\u006de": "walk"', "<think>", "</think>"),
]


@settings(max_examples=400)
@given(st.sampled_from([*FAMILIES]), st.lists(st.sampled_from(FRAGMENTS), max_size=7).map("".join))
def test_whatever_is_allowed_holds_no_call_against_a_schema(family: str, text: str) -> None:
    use = ToolUse(tools=TOOLS)
    if not accepts(grammar_of(family), text):
        return

    for name, arguments in read(CallParser(FAMILIES[family], use.functions, is_held=True), *text).calls:
        tool = use.tool(name)
        jsonschema.validate(json.loads(arguments), tool.forced_schema() if tool.strict else {"type": "object"})


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("hermes", marked(call()), f"\n{marked(call())}"),
        ("qwen3_coder", marked(TAGGED), f"\n{marked(TAGGED)}"),
        ("llama3", f"⟦<|python_tag|>⟧{call()}", f"; {call()}"),
        ("llama3", call(), f"; {call()}"),
        ("json", call(), f"; {call()}"),
        ("mistral", f"⟦[TOOL_CALLS]⟧walk⟦[ARGS]⟧{A1}", f"⟦[TOOL_CALLS]⟧walk⟦[ARGS]⟧{A1}"),
    ],
)
def test_one_call_is_the_end_where_only_one_is_wanted(family: str, first: str, second: str) -> None:
    one = grammar_of(family, is_parallel=False)

    assert accepts(grammar_of(family), first + second)
    assert accepts(one, "just text")
    assert accepts(one, f"text {first}" if family == "hermes" else first)
    assert not accepts(one, first + second)


def test_list_of_one_call_is_closed() -> None:
    one = grammar_of("json", is_parallel=False)

    assert accepts(one, f"[{call()}]")
    assert not accepts(one, f"[{call()}")
    assert not accepts(one, f"[{call()}, {call()}]")


OPENED = Thought(markers=("<think>", "</think>"), is_open=True)
NOT_OPENED = Thought(markers=("<think>", "</think>"), is_open=False)
SPECIAL = Thought(markers=("[THINK]", "[/THINK]"), is_open=False)
BAD = f"{OPEN}no call"


@pytest.mark.parametrize(
    ("thought", "text", "is_allowed"),
    [
        pytest.param(OPENED, f"Hm, {BAD}", True, id="thinking"),
        pytest.param(OPENED, f"Hm, {BAD}</think>\n\nGo. {marked(call())}", True, id="thinking-call"),
        pytest.param(OPENED, f"Hm</think>{BAD}", False, id="thinking-bad-call"),
        pytest.param(NOT_OPENED, f"\n<think>{BAD}", True, id="begun"),
        pytest.param(NOT_OPENED, f"<think>{BAD}</think>{marked(call())}", True, id="begun-call"),
        pytest.param(NOT_OPENED, f"<think>{BAD}</think>{BAD}", False, id="begun-bad-call"),
        pytest.param(NOT_OPENED, BAD, False, id="none-bad-call"),
        pytest.param(NOT_OPENED, "Just text", True, id="none"),
        pytest.param(NOT_OPENED, f"I <think>{BAD}", False, id="later-is-no-thinking"),
        pytest.param(SPECIAL, f"⟦<|channel|>⟧ ⟦[THINK]⟧{BAD}⟦[/THINK]⟧{marked(call())}", True, id="special"),
        pytest.param(SPECIAL, f"⟦[THINK]⟧{BAD}⟦[/THINK]⟧{BAD}", False, id="special-bad-call"),
        pytest.param(SPECIAL, f"[THINK]{BAD}[/THINK]{BAD}", False, id="spelled-bad-call"),
        pytest.param(SPECIAL, f"⟦[THINK]⟧{BAD}", True, id="special-not-ended"),
        pytest.param(None, f"<think>{BAD}", False, id="nobody-thinks"),
    ],
)
def test_thinking_is_free_and_what_follows_is_not(thought: Thought | None, text: str, is_allowed: bool) -> None:
    assert accepts(grammar_of("hermes", thought=thought), text) == is_allowed


def test_bare_json_behind_thinking_is_the_whole_answer_too() -> None:
    grammar = grammar_of("json", thought=NOT_OPENED)

    assert accepts(grammar, f"<think>{call('run')}</think>\n\n{call()}")
    assert not accepts(grammar, f"<think>{call('run')}</think>\n\n{call(arguments='{}')}")


@pytest.mark.parametrize("family", [*FAMILIES])
@pytest.mark.parametrize("thought", [None, OPENED, NOT_OPENED, SPECIAL], ids=["none", "open", "not-open", "special"])
@pytest.mark.parametrize("special_tokens", [{}, SPECIAL_TOKENS], ids=["no-special", "special"])
@pytest.mark.parametrize("is_parallel", [True, False], ids=["several", "one"])
def test_every_form_passes_the_check(
    family: str, thought: Thought | None, special_tokens: dict[int, str], is_parallel: bool
) -> None:
    use = ToolUse(tools=TOOLS, is_parallel=is_parallel)

    check(strict_grammar(use, FAMILIES[family], special_tokens, thought), tuple(special_tokens.items()))


@pytest.mark.parametrize("name", [".x", "-x"])
def test_name_that_mistral_could_not_begin_with_comes_in_json(name: str) -> None:
    grammar = strict_grammar(ToolUse(tools=(Tool(name=name, strict=True),)), FAMILIES["mistral"], SPECIAL_TOKENS)

    assert accepts(grammar, f"[TOOL_CALLS][{call(name, '{}')}]")
    assert not accepts(grammar, f"[TOOL_CALLS]{name}{{}}")
