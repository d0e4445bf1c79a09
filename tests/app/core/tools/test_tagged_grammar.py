"""Arguments in tags: what the grammar lets pass reads as JSON of the schema, and what tags cannot say comes in JSON."""

import json
from typing import Any

import jsonschema
import pytest
from byte_tokens import accepts
from reading import read

from app.core.tools.calls import FAMILIES, CallParser
from app.core.tools.strict import strict_grammar
from app.core.tools.use import Tool, ToolUse

FAMILY = FAMILIES["qwen3_coder"]
COLOR = {"$defs": {"color": {"enum": ["red", "dark blue"], "type": "string"}}}
STOP = {"type": "string"}


def object_of(required: list[str], /, *, more: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, **(more or {})}


def tags(**values: str) -> str:
    parts = "\n".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in values.items())
    return f"<tool_call>\n<function=f>\n{parts}\n</function>\n</tool_call>"


def in_json(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'


def use_of(schema: dict[str, Any] | None, strict: bool = True) -> ToolUse:
    return ToolUse(tools=(Tool(name="f", parameters=schema, strict=strict),))


def arguments_of(use: ToolUse, text: str) -> Any:
    ((_, arguments),) = read(CallParser(FAMILY, use.functions, is_held=True), *text).calls
    return json.loads(arguments)


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        pytest.param(STOP, "any <b>text</b>\nof lines", "any <b>text</b>\nof lines", id="text"),
        pytest.param(STOP, "5", "5", id="text-of-digits"),
        pytest.param({}, "5", "5", id="anything"),
        pytest.param({"type": "integer"}, "5", 5, id="integer"),
        pytest.param({"type": ["integer", "null"]}, "null", None, id="integer-or-null"),
        pytest.param({"type": "array", "items": STOP}, '["a", "</parameter>"]', ["a", "</parameter>"], id="array"),
        pytest.param({"type": "boolean"}, "true", True, id="boolean"),
        pytest.param({"enum": ["red", "dark blue"]}, "dark blue", "dark blue", id="enum"),
        pytest.param({"const": 3}, "3", 3, id="const"),
        pytest.param({"$ref": "#/$defs/color"}, "red", "red", id="reference"),
        pytest.param({"type": "array", "items": {"$ref": "#/$defs/color"}}, '["red"]', ["red"], id="inner-reference"),
        pytest.param({"anyOf": [STOP, {"type": "null"}]}, "a", "a", id="text-or-null-text"),
        pytest.param({"anyOf": [STOP, {"type": "null"}]}, "null", None, id="text-or-null-null"),
        pytest.param({"anyOf": [{"$ref": "#/$defs/color"}, {"type": "null"}]}, "null", None, id="enum-or-null-null"),
        pytest.param({"anyOf": [{"$ref": "#/$defs/color"}, {"type": "null"}]}, "red", "red", id="enum-or-null-enum"),
        pytest.param({"type": "string", "description": "Whose", "default": "x"}, "a", "a", id="with-notes"),
    ],
)
def test_parameter_reads_as_its_schema_says(schema: Any, written: str, value: Any) -> None:
    use = use_of(object_of(["a"], more=COLOR, a=schema))
    grammar = strict_grammar(use, FAMILY, {})

    assert accepts(grammar, tags(a=written))
    assert not accepts(grammar, in_json(json.dumps({"a": value})))
    assert arguments_of(use, tags(a=written)) == {"a": value}
    jsonschema.validate({"a": value}, use.tools[0].forced_schema())


@pytest.mark.parametrize(
    ("schema", "written"),
    [
        pytest.param({"type": "integer"}, "five", id="no-integer"),
        pytest.param({"type": "integer", "maximum": 4}, "5", id="too-much"),
        pytest.param({"enum": ["red", "blue"]}, "green", id="not-in-enum"),
        pytest.param({"enum": ["red", "blue"]}, '"red"', id="enum-in-quotes"),
        pytest.param({"$ref": "#/$defs/color"}, "blue", id="not-in-referenced-enum"),
        pytest.param({"type": "array", "items": {"$ref": "#/$defs/color"}}, '["blue"]', id="inner-reference"),
        pytest.param({"anyOf": [{"$ref": "#/$defs/color"}, {"type": "null"}]}, "blue", id="neither"),
        pytest.param({"type": "object", "properties": {"b": STOP}, "required": ["b"]}, "{}", id="inner-member-missing"),
    ],
)
def test_parameter_against_its_schema_is_refused(schema: Any, written: str) -> None:
    assert not accepts(strict_grammar(use_of(object_of(["a"], more=COLOR, a=schema)), FAMILY, {}), tags(a=written))


@pytest.mark.parametrize(
    ("values", "is_allowed"),
    [
        ({"a": "1", "b": "x", "c": "y"}, True),
        ({"a": "1", "c": "y"}, True),
        ({"a": "1"}, False),
        ({"c": "y"}, False),
        ({"a": "1", "c": "y", "d": "z"}, False),
        ({"a": "1", "a.b": "2", "c": "y"}, False),
    ],
)
def test_what_is_required_is_there_and_nothing_unnamed(values: dict[str, str], is_allowed: bool) -> None:
    schema = object_of(["a", "c"], a={"type": "integer"}, b=STOP, c=STOP)

    assert accepts(strict_grammar(use_of(schema), FAMILY, {}), tags(**values)) == is_allowed


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        pytest.param(object_of(["a"], a={"type": "string", "pattern": "^b+$"}), {"a": "bb"}, {"a": "c"}, id="pattern"),
        pytest.param(object_of(["a"], a={"type": "string", "maxLength": 1}), {"a": "b"}, {"a": "cc"}, id="length"),
        pytest.param(object_of(["a"], a={"type": ["string", "integer"]}), {"a": 1}, {"a": True}, id="text-or-number"),
        pytest.param(object_of(["a"], a={"enum": ["b", 1]}), {"a": 1}, {"a": 2}, id="enum-of-both"),
        pytest.param(object_of(["a"], a={"enum": ["\n"]}), {"a": "\n"}, {"a": ""}, id="enum-of-line-ends"),
        pytest.param(object_of(["a"], a={"type": "string", "enum": ["b", None]}), {"a": "b"}, {"a": None}, id="null"),
        pytest.param(object_of(["a"], a={"type": ["string", "null"], "enum": ["null"]}), {"a": "null"}, {}, id="nulls"),
        pytest.param(object_of([], more={"additionalProperties": STOP}), {"a": "b"}, {"a": 1}, id="additional"),
        pytest.param(object_of([], more={"minProperties": 1}, a=STOP), {"a": "b"}, {}, id="keyword-of-the-object"),
        pytest.param(object_of([], **{"a b": STOP}), {"a b": "c"}, {"a": "c"}, id="name-no-tag-can-have"),
        pytest.param(object_of(["a"], a={"$ref": "#/properties/b"}, b=STOP), {"a": "x"}, {"a": 1}, id="sibling"),
        pytest.param({"type": "object"}, {"a": 1}, [], id="any-object"),
        pytest.param({"required": ["a"]}, {"a": 1}, {"b": 1}, id="any-object-with-a-member"),
        pytest.param(object_of(["a"], a=True), {"a": 1}, {}, id="no-schema-proper"),
        pytest.param(object_of([], a={"enum": []}), {}, {"a": ""}, id="nothing-allowed"),
        pytest.param(
            object_of(["a"], more=COLOR, a={"$ref": "#/$defs/color", "maxLength": 3}),
            {"a": "red"},
            {"a": "dark blue"},
            id="reference-and-more",
        ),
        pytest.param(
            object_of(["a"], a={"type": "integer"}, b={"type": "array", "items": {"$ref": "#/properties/a"}}),
            {"a": 1, "b": [2]},
            {"a": 1, "b": ["x"]},
            id="reference-to-no-definition",
        ),
        pytest.param(
            object_of(["a"], more={"$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, STOP]}}}, a={"$ref": "#/$defs/x"}),
            {"a": "b"},
            {"a": 1},
            id="reference-to-itself",
        ),
    ],
)
def test_what_tags_cannot_say_comes_in_json(schema: dict[str, Any], good: Any, bad: Any) -> None:
    use = use_of(schema)
    grammar = strict_grammar(use, FAMILY, {})

    assert accepts(grammar, in_json(json.dumps(good)))
    assert arguments_of(use, in_json(json.dumps(good))) == good
    assert not accepts(grammar, in_json(json.dumps(bad)))
    assert not accepts(grammar, "<tool_call>\n<function=")


def test_function_without_parameters_has_none() -> None:
    grammar = strict_grammar(use_of(None), FAMILY, {})

    assert accepts(grammar, tags())
    assert not accepts(grammar, tags(a="b"))


def test_parameters_of_a_function_that_is_not_strict_are_free() -> None:
    use = use_of(object_of(["a"], a={"type": "integer"}), strict=False)
    grammar = strict_grammar(use, FAMILY, {})

    assert accepts(grammar, tags(b="x <y> z", c=""))
    assert arguments_of(use, tags(b="x <y> z", c="")) == {"b": "x <y> z", "c": ""}
    assert not accepts(grammar, tags(b="x").replace("=f>", "=g>"))
