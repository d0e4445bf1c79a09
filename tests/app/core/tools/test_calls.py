"""What each family writes is content and calls, wherever the stream is cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import Said, cut, read

from app.core.tools.calls import FAMILIES, CallParser

PROPERTIES = {
    "from": {"$ref": "#/$defs/place"},
    "city": {"type": "string"},
    "days": {"type": ["integer", "null"]},
    "at": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "where": {"type": "object"},
    "wet": {"type": "boolean"},
}
PLACES = {"place": {"allOf": [{"type": "object"}]}}
FUNCTIONS = {"get_weather": {"type": "object", "properties": PROPERTIES, "$defs": PLACES}, "add": None}
NESTED = '{"city": "Köln } </tool_call> \\"x\\"", "days": [1, {"n": null}]}'

# family, text, content, calls
CASES = [
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "", [("add", '{"a": 1}')]),
    (
        "hermes",
        f'I look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {NESTED}}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "add"}\n</tool_call>\n',
        "I look.",
        [("get_weather", NESTED), ("add", "{}")],
    ),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}}</tool_call> done', " done", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "new", "x": [1], "arguments": {}}', "", [("new", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
    (
        "qwen3_coder",
        "Ok.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln <1>\n\n</parameter>\n<parameter=days>\n3\n"
        '</parameter>\n<parameter=at>\nnull\n</parameter>\n<parameter=where>\n{"a": [1]}\n</parameter>\n'
        "<parameter=wet>True</parameter>\n<parameter=more>5</parameter>\n</function>\n</tool_call>",
        "Ok.",
        [
            (
                "get_weather",
                '{"city": "Köln <1>\\n", "days": 3, "at": null, "where": {"a": [1]}, "wet": true, "more": "5"}',
            )
        ],
    ),
    ("qwen3_coder", "<tool_call><function=add></function></tool_call>", "", [("add", "{}")]),
    (
        "qwen3_coder",
        '<tool_call><function=get_weather><parameter=from>{"a": "</parameter>"}</parameter></function></tool_call>',
        "",
        [("get_weather", '{"from": {"a": "</parameter>"}}')],
    ),
    (
        "qwen3_coder",
        f"<tool_call><function=get_weather><parameter=days>{'[' * 30_000}</parameter></function></tool_call>",
        "",
        [("get_weather", f'{{"days": "{"[" * 30_000}"}}')],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=get_weather><parameter=days>many</parameter></tool_call>",
        "",
        [("get_weather", '{"days": "many"}')],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=get_weather><parameter=days>NaN</parameter><parameter=where>1e999</parameter></function>",
        "",
        [("get_weather", '{"days": "NaN", "where": "1e999"}')],
    ),
    ("qwen3_coder", "<tool_call><function=add><parameter=a>1</parameter><par", "", [("add", '{"a": "1"')]),
    ("qwen3_coder", '<tool_call>{"name": "add", "arguments": {}}</tool_call>', "", [("add", "{}")]),
    ("llama3", '{"name": "add", "parameters": {"a": 1}}', "", [("add", '{"a": 1}')]),
    (
        "llama3",
        '<|python_tag|>{"type": "function", "name": "add", "parameters": {}}; {"name": "add", "parameters": {"a": 2}}',
        "",
        [("add", "{}"), ("add", '{"a": 2}')],
    ),
    ("llama3", 'Well. <|python_tag|>{"name": "new", "parameters": {}}', "Well.", [("new", "{}")]),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "new", "arguments": {}, "id": "123456789"}]',
        "",
        [("add", '{"a": 1}'), ("new", "{}")],
    ),
    (
        "mistral",
        'Yes.[TOOL_CALLS]add[ARGS]{"a": "[TOOL_CALLS]"}[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "x"}',
        "Yes.",
        [("add", '{"a": "[TOOL_CALLS]"}'), ("get_weather", '{"city": "x"}')],
    ),
    ("mistral", '[TOOL_CALLS]add{"a": {"b": 1}}\n', "", [("add", '{"a": {"b": 1}}')]),
    ("json", ' {"name": "add", "arguments": {"a": 1}}\n', "", [("add", '{"a": 1}')]),
    (
        "json",
        '[{"name": "add", "arguments": {}}, {"name": "get_weather", "parameters": {}}]',
        "",
        [("add", "{}"), ("get_weather", "{}")],
    ),
    ("json", '{"name": "add", "arguments": {}} and more', " and more", [("add", "{}")]),
]
CONTENT = [
    ("hermes", "plain, with a < b and <tool"),
    ("hermes", "  \n"),
    ("hermes", "<tool_call>nothing of the kind</tool_call> then"),
    ("hermes", "<tool_call>{'name': 'add', 'arguments': {'a': 1}}</tool_call>"),
    ("hermes", '<tool_call>{"name": "add", "arguments": {\'a\': 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "argu'),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", '{"name": "add", "arguments": {}}'),
    ("qwen3_coder", "<tool_call><function>add</function></tool_call>"),
    ("qwen3_coder", "<tool_call><function=add><parameter=a>1</param"),
    ("qwen3_coder", "<tool_call><b>"),
    ("qwen3_coder", "<tool_call><function=" + "a" * 90),
    ("llama3", 'Sure: {"name": "add", "parameters": {}}'),
    ("llama3", '{"name": "Alice", "parameters": {}}'),
    ("llama3", '{"title": "a story", "name": "add"}'),
    ("llama3", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS]add or not"),
    ("mistral", "[TOOL_CALLS][1, 2]"),
    ("mistral", "[TOOL_CALLS]add[ARGS]{a: 1}"),
    ("mistral", "[TOOL_CALLS]" + "a" * 200),
    ("mistral", "[1] is a footnote"),
    ("json", "[]"),
    ("json", '{"a": 1}'),
    ("json", "   "),
    ("json", '{"name": "add"'),
]
ALL = CASES + [(family, text, text, []) for family, text in CONTENT]


def parser(family: str, *, is_parallel: bool = True) -> CallParser:
    return CallParser(FAMILIES[family], FUNCTIONS, is_parallel=is_parallel)


@pytest.mark.parametrize(("family", "text", "content", "calls"), ALL)
def test_text_is_content_and_calls(family: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert read(parser(family), text) == Said(content, "", calls)


@given(st.sampled_from(ALL), st.lists(st.integers(0, 400), max_size=30))
def test_pieces_give_what_the_whole_gives(case: tuple[str, str, str, list[tuple[str, str]]], places: list[int]) -> None:
    family, text, content, calls = case

    assert read(parser(family), *cut(text, places)) == Said(content, "", calls)


FRAGMENTS = [
    *("<function=add>", "<parameter=a>", "</parameter>", "</function>"),
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "add", " ", "\n", "x", ";", "[", "]"),
    *("{", "}", '"', ":", ",", "\\", '{"name": "add", "arguments": {"a": "é"}}', '"name": "add"', '"arguments": {'),
]


@given(
    st.sampled_from([*FAMILIES]),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.lists(st.integers(0, 400), max_size=30),
)
def test_nonsense_is_no_error_and_does_not_depend_on_the_pieces(family: str, text: str, places: list[int]) -> None:
    assert read(parser(family), *cut(text, places)) == read(parser(family), *text) == read(parser(family), text)


def test_arguments_are_passed_on_while_they_are_written() -> None:
    reader = parser("hermes")

    pieces = [reader.feed(text).calls for text in ('<tool_call>{"name": "add", "arguments": {"a"', ": 1", "2}}")]

    assert [[piece.arguments for piece in calls] for calls in pieces] == [['{"a"'], [": 1"], ["2}"]]
    assert [piece.name for calls in pieces for piece in calls] == ["add", None, None]


def test_text_that_cannot_be_a_call_is_not_held_back() -> None:
    reader = parser("hermes")

    assert [reader.feed(text).content for text in ("a", " <tool", "s> b", " ", "c")] == [
        "a",
        "",
        " <tools> b",
        "",
        " c",
    ]


def test_calls_behind_the_first_are_left_out_where_only_one_is_wanted() -> None:
    text = json.dumps([{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}])

    assert read(parser("json", is_parallel=False), *text).calls == [("add", '{"a": 1}')]
