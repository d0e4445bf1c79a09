"""Every grammar that reaches a worker has passed here: what is refused, with which reason, and what is not."""

import json
from typing import Any

import pytest

from app.renderer.grammars import GrammarRefused, check
from workers.protocol.specs import Grammar


def nested(depth: int) -> dict[str, Any]:
    """Arrays in arrays."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


REFERENCE = {"$ref": "#"}
TWO_STEPS = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
NEEDS_ITSELF = {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"]}

REFUSED_SCHEMAS = [
    pytest.param({"not": {}}, "keyword 'not' at # is", id="not"),
    pytest.param({"if": {}, "then": {}}, "keyword 'if'", id="if"),
    pytest.param({"items": {"uniqueItems": True}}, "keyword 'uniqueItems' at #/items", id="unique-items"),
    pytest.param({"properties": {"a/b": {"contains": {}}}}, "keyword 'contains' at #/properties/a~1b", id="contains"),
    pytest.param({"type": "object", "required": [["a"]]}, "'required' at # must be a list", id="required-list"),
    pytest.param({"minLenght": 3}, "keyword 'minLenght'", id="misspelt"),
    pytest.param({"nullable": True}, "keyword 'nullable'", id="openapi"),
    pytest.param({"x-guidance": {"lenient": True}, "not": {}}, "keyword 'x-guidance'", id="library's-own"),
    pytest.param({"items": {"$id": "http://a.example/b"}}, "keyword '$id'", id="id-inside"),
    pytest.param({"type": "string", "format": "colour"}, "format at # is none of", id="format"),
    pytest.param({"items": {"format": "unknown"}}, "format at #/items is none of", id="format-unknown"),
    pytest.param({"format": ["date"]}, "format at # is none of", id="format-list"),
    pytest.param({"type": "wizard"}, "wizard", id="type"),
    pytest.param({"type": "string", "pattern": "("}, "unclosed group", id="pattern"),
    pytest.param({"type": "string", "pattern": "(?=a)"}, "look-ahead", id="look-ahead"),
    pytest.param({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "write 'anyOf'", id="one-of-overlaps"),
    pytest.param({"type": "integer", "minimum": 3, "maximum": 2}, "minimum", id="empty-range"),
    pytest.param({"enum": []}, "nsatisfiable", id="empty-enum"),
    pytest.param({"properties": []}, "#/properties must be an object", id="properties-list"),
    pytest.param({"anyOf": {}}, "#/anyOf must be an array", id="any-of-object"),
    pytest.param({"items": 5}, "#/items must be an object or a boolean", id="items-number"),
    pytest.param(False, "no value", id="false"),
    pytest.param(5, "must be an object or a boolean", id="number"),
    pytest.param(nested(33), "more than 32 levels", id="depth-33"),
    pytest.param({"$ref": "http://a.example/b"}, "leads out of the schema", id="external-reference"),
    pytest.param({"$ref": "other.json#/a"}, "leads out of the schema", id="file-reference"),
    pytest.param({"$ref": "#/$defs/a"}, "leads to no schema", id="dangling-reference"),
    pytest.param({"$ref": "#/default", "default": {"not": {}}}, "leads to no schema", id="reference-to-a-value"),
    pytest.param({"$ref": 5}, "must be a string", id="reference-number"),
    pytest.param(REFERENCE, "no end", id="cycle-of-one"),
    pytest.param({"$defs": TWO_STEPS, "$ref": "#/$defs/a"}, "no end", id="cycle-of-two"),
    pytest.param({"allOf": [REFERENCE]}, "no end", id="cycle-all-of"),
    pytest.param({"anyOf": [REFERENCE, {"type": "array", "minItems": 1, "items": REFERENCE}]}, "no end", id="any-of"),
    pytest.param({"$defs": {"x": NEEDS_ITSELF}}, "no end", id="cycle-required"),
    pytest.param(
        {"type": "object", "required": ["a"], "additionalProperties": REFERENCE}, "no end", id="cycle-additional"
    ),
    pytest.param({"type": "array", "prefixItems": [{}, REFERENCE], "minItems": 2}, "no end", id="cycle-prefix"),
]


SPECIAL_TOKENS = ((0, "<s>"), (300, "<|end|>"))


def optional_properties(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"property_{index}": {"type": "string"} for index in range(number)}}


@pytest.mark.parametrize(("schema", "reason"), REFUSED_SCHEMAS)
def test_schema_is_refused_with_its_place_and_rule(schema: Any, reason: str) -> None:
    with pytest.raises(GrammarRefused) as caught:
        check(Grammar(kind="json_schema", text=json.dumps(schema)))

    assert reason in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({}, id="anything"),
        pytest.param(True, id="true"),
        pytest.param(nested(32), id="depth-32"),
        pytest.param({"properties": {"not": {"type": "string"}, "$ref": {"type": "null"}}}, id="names-like-keywords"),
        pytest.param({"enum": [{"not": 1, "$ref": "x"}], "default": {"if": 1}}, id="values-like-schemas"),
        pytest.param({"title": "a", "$comment": "b", "x-order": 3, "$id": "http://a.example/b"}, id="annotations"),
        pytest.param({"properties": {"next": REFERENCE}}, id="list-that-may-end"),
        pytest.param({"anyOf": [{"type": "null"}, {"type": "array", "items": REFERENCE}]}, id="tree"),
        pytest.param({"type": "array", "items": REFERENCE}, id="empty-array-ends"),
        pytest.param({"type": ["object", "null"], "properties": {"a": REFERENCE}, "required": ["a"]}, id="or-null"),
        pytest.param({"$defs": {"a/b~%c": {"type": "null"}}, "$ref": "#/$defs/a~1b~0%25c"}, id="escaped-reference"),
        pytest.param({"oneOf": [{"type": "string"}, {"type": "integer"}]}, id="one-of-apart"),
        pytest.param({"type": "string", "format": "date-time"}, id="format"),
        pytest.param(optional_properties(500), id="500-optional-properties"),
    ],
)
def test_schema_is_accepted(schema: Any) -> None:
    check(Grammar(kind="json_schema", text=json.dumps(schema)))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        pytest.param("json_schema", "{", "not JSON", id="no-json"),
        pytest.param("json_schema", "[" * 30_000, "more than 32 levels", id="30000-brackets"),
        pytest.param("json_schema", json.dumps(optional_properties(1200)), "too much may follow", id="1200-optional"),
        pytest.param("regex", "(", "unclosed group", id="regex"),
        pytest.param("regex", r"(a)\1", "backreferences", id="back-reference"),
        pytest.param("regex", "(" * 30_000 + ")" * 30_000, "(", id="30000-groups"),
        pytest.param("regex", "(a{1000}){1000}", "too many", id="explodes-at-the-first-byte"),
        pytest.param("regex", "(a?){500}a{500}", "too many", id="explodes-at-the-second-byte"),
        pytest.param("lark", "", "Empty grammar", id="no-grammar"),
        pytest.param("lark", 'root ::= "a"', "Expected token", id="gbnf"),
        pytest.param("lark", "start: nowhere", "unknown name", id="unknown-rule"),
        pytest.param("lark", "start: start", "no text matches", id="endless-rule"),
        pytest.param("lark", "start: " + "(" * 30_000, "too deeply nested", id="30000-parentheses"),
        pytest.param("lark", "start: <|nobody|>", "unknown special token", id="special-token"),
        pytest.param("lark", "start: <[1000000]>", "too large", id="special-token-by-id"),
    ],
)
def test_text_that_is_no_grammar_is_refused(kind: Any, text: str, reason: str) -> None:
    with pytest.raises(GrammarRefused) as caught:
        check(Grammar(kind=kind, text=text), SPECIAL_TOKENS)

    assert reason in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_panic_of_the_library_is_a_refusal() -> None:
    """llguidance 1.9.1 panics where it lists the special tokens that there are, and there is but one."""
    with pytest.raises(GrammarRefused, match=r"library fails|unknown special token"):
        check(Grammar(kind="lark", text="start: <|nobody|>"))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        pytest.param("json_object", "", id="object"),
        pytest.param("regex", "", id="empty-regex"),
        pytest.param("regex", "^(a|b)*$", id="anchors"),
        pytest.param("choice", '["", "a\\"b", "\\u0000/\\n"]', id="choice"),
        pytest.param("lark", 'start: "a" <|end|>', id="special-token"),
        pytest.param("lark", 'start: "a" <[300]>', id="special-token-by-id"),
        pytest.param("lark", 'start: "<call>" %json {"type": "object"} "</call>"', id="json-in-lark"),
    ],
)
def test_grammar_is_accepted(kind: Any, text: str) -> None:
    check(Grammar(kind=kind, text=text), SPECIAL_TOKENS)
