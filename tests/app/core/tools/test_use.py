"""The grammar of calls that must be made lets the family's parser read calls that keep to the schemas, and no other."""

from typing import Any

import pytest
from byte_tokens import accepts
from reading import read

from app.core.tools.calls import FAMILIES, CallParser, Family, forced_family
from app.core.tools.use import Tool, ToolUse
from app.renderer.grammars import check
from workers.protocol.specs import Grammar

ANIMAL = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "required": ["a"],
    "$defs": {"x": {"enum": [1]}},
}
TOOLS = (Tool(name="walk", parameters=ANIMAL), Tool(name='sl"eep'), Tool(name="free", parameters={"minProperties": 1}))
WALK = '{"name": "walk", "arguments": {"a": 1}}'
SLEEP = '{"name": "sl\\"eep", "arguments": {}}'


def wrapped(family: Family, *calls: str) -> str:
    if family.end is None:
        return "; ".join(calls)
    return "\n".join(f"{family.begin}\n{call}\n{family.end}" for call in calls)


@pytest.mark.parametrize("name", [*FAMILIES])
def test_required_calls_are_in_a_syntax_that_is_read_again(name: str) -> None:
    use = ToolUse(tools=TOOLS, choice="required")
    family = forced_family(FAMILIES[name], beside_json=False)
    grammar = use.grammar(family, None)
    assert grammar is not None
    text = wrapped(family, WALK, WALK)

    check(grammar)

    assert accepts(grammar, text)
    assert read(CallParser(family, use.functions), *text).calls == [("walk", '{"a": 1}')] * 2


@pytest.mark.parametrize("name", ["hermes", "json"])
@pytest.mark.parametrize(
    ("calls", "is_parallel", "is_allowed"),
    [
        pytest.param([WALK], False, True, id="one"),
        pytest.param([SLEEP, WALK], True, True, id="several"),
        pytest.param([WALK, WALK], False, False, id="several-where-one"),
        pytest.param([WALK] * 17, True, False, id="17"),
        pytest.param([WALK.replace("walk", "run")], True, False, id="unknown-function"),
        pytest.param([WALK.replace("1", "2")], True, False, id="against-the-schema"),
        pytest.param([SLEEP.replace("{}", '{"a": 1}')], True, False, id="argument-of-none"),
        pytest.param(['{"name": "free", "arguments": {"b": 1}}'], True, True, id="free-arguments"),
        pytest.param(['{"name": "free", "arguments": 5}'], True, False, id="no-object"),
        pytest.param([WALK.replace("}}", "}")], True, False, id="unfinished"),
    ],
)
def test_required_calls_keep_to_the_schemas(name: str, calls: list[str], is_parallel: bool, is_allowed: bool) -> None:
    family = FAMILIES[name]
    grammar = ToolUse(tools=TOOLS, choice="required", is_parallel=is_parallel).grammar(family, None)
    assert grammar is not None

    assert accepts(grammar, wrapped(family, *calls)) == is_allowed


@pytest.mark.parametrize(
    ("arguments", "is_allowed"), [('{"a": 1}', True), ("{}", False), ('{"a": 1, "b": 2}', False), (WALK, False)]
)
def test_named_call_is_its_arguments_alone(arguments: str, is_allowed: bool) -> None:
    grammar = ToolUse(tools=TOOLS, choice="named", named="walk").grammar(FAMILIES["hermes"], None)
    assert grammar is not None

    assert accepts(grammar, arguments) == is_allowed


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_free_choice_has_no_grammar(choice: Any) -> None:
    use = ToolUse(tools=TOOLS, choice=choice)

    assert use.grammar(FAMILIES["json"], None) is None
    assert use.enforced_schemas(None) == []


@pytest.mark.parametrize("name", [*FAMILIES])
def test_answer_of_a_schema_and_a_call_are_both_right(name: str) -> None:
    answer = Grammar(
        kind="json_schema", text='{"type": "object", "properties": {"b": {"enum": [2]}}, "required": ["b"]}'
    )
    family = forced_family(FAMILIES[name], beside_json=True)
    use = ToolUse(tools=TOOLS)
    grammar = use.grammar(family, answer)
    assert grammar is not None

    check(grammar)

    assert accepts(grammar, '{"b": 2}')
    assert accepts(grammar, wrapped(family, WALK))
    assert not accepts(grammar, '{"b": 3}')
    assert not accepts(grammar, "text")
    assert read(CallParser(family, use.functions), '{"b": 2}').content == '{"b": 2}'
    assert len(use.enforced_schemas(answer)) == 3
    assert ToolUse().grammar(family, answer) == answer


def test_every_schema_to_enforce_is_named_by_its_field() -> None:
    required = ToolUse(tools=TOOLS, choice="required").enforced_schemas(None)
    named = ToolUse(tools=TOOLS, choice="named", named="walk").enforced_schemas(None)

    assert [one.param for one in required] == [f"tools[{index}].function.parameters" for index in range(3)]
    assert [one.function for one in required] == ["walk", 'sl"eep', "free"]
    assert named == required[:1]
