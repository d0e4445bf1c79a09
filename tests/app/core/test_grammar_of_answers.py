"""Which grammar an answer gets: what the client asks for or an error; what is strict by default gives way instead."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizers import Tokenizer

from app import embedded
from app.core.answers import AnswerRules
from app.core.constrained import constrained
from app.core.request import GenerationRequest
from app.core.structured import GrammarChecker
from app.core.text import TextModel, load_text_model
from app.core.token_strings import TokenStrings
from app.core.tools.calls import FAMILIES
from app.core.tools.use import Tool, ToolUse
from app.errors import InvalidRequest
from workers.protocol.specs import Grammar, SamplingParams

CITY = {"type": "object", "properties": {"city": {"enum": ["Rom"]}}}
NOT_ENFORCEABLE = {"type": "object", "properties": {"city": {"not": {}}}}


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return load_text_model(embedded.model_path())


@pytest.fixture
async def grammars() -> AsyncIterator[GrammarChecker]:
    made = GrammarChecker()
    yield made
    await made.stop()


async def grammar_of(
    grammars: GrammarChecker, text_model: TextModel, use: ToolUse, family: str | None = "hermes"
) -> tuple[Grammar | None, AnswerRules]:
    request = GenerationRequest(model="m", prompts=["x"], params=SamplingParams(max_tokens=0), tool_use=use)
    rules = AnswerRules(tool_use=use, family=None if family is None else FAMILIES[family])
    request, rules = await constrained(grammars, request, rules, text_model, [[1]])
    return request.params.grammar, rules


def tools(*strict: bool | None, parameters: Any = CITY) -> tuple[Tool, ...]:
    return tuple(Tool(name=f"f{index}", parameters=parameters, strict=one) for index, one in enumerate(strict))


@pytest.mark.parametrize(
    ("use", "family", "is_held"),
    [
        pytest.param(ToolUse(tools=tools(None, False)), "hermes", False, id="nothing-said"),
        pytest.param(ToolUse(tools=tools(None, True)), "hermes", True, id="one"),
        pytest.param(ToolUse(tools=tools(True)), None, False, id="nobody-looks"),
        pytest.param(ToolUse(choice="none", is_strict_by_default=True), "hermes", False, id="no-tools"),
        pytest.param(ToolUse(tools=tools(None), is_strict_by_default=True), "hermes", True, id="default"),
        pytest.param(ToolUse(tools=tools(False), is_strict_by_default=True), "hermes", False, id="default-denied"),
        pytest.param(
            ToolUse(tools=tools(None, parameters=NOT_ENFORCEABLE), is_strict_by_default=True),
            "hermes",
            False,
            id="default-cannot-be",
        ),
    ],
)
async def test_calls_are_held_where_a_function_is_strict(
    grammars: GrammarChecker, text_model: TextModel, use: ToolUse, family: str | None, is_held: bool
) -> None:
    grammar, rules = await grammar_of(grammars, text_model, use, family)

    assert (grammar is not None) == rules.holds_calls == is_held


async def test_default_gives_way_where_all_schemas_together_are_too_many(
    grammars: GrammarChecker, text_model: TextModel
) -> None:
    wide = {**CITY, "description": "x" * 2**10}
    defaults = tools(*[None] * 80, parameters=wide)
    asked = Tool(name="asked", parameters=CITY, strict=True)

    none, _ = await grammar_of(grammars, text_model, ToolUse(tools=defaults, is_strict_by_default=True))
    one, rules = await grammar_of(grammars, text_model, ToolUse(tools=(*defaults, asked), is_strict_by_default=True))

    assert none is None
    assert one is not None
    assert "Rom" in one.text
    assert "xxx" not in one.text
    assert rules.tool_use is not None
    assert [tool.name for tool in rules.tool_use.tools if tool.strict] == ["asked"]
    with pytest.raises(InvalidRequest, match="more than 65536 bytes") as caught:
        await grammar_of(grammars, text_model, ToolUse(tools=tools(*[True] * 80, parameters=wide)))
    assert caught.value.param == "tools"


async def test_default_gives_way_where_tokens_cannot_be_any_text(
    grammars: GrammarChecker, text_model: TextModel, byte_level: Tokenizer
) -> None:
    words = TokenStrings(byte_level, {"decoder": {"type": "WordPiece"}})
    use = ToolUse(tools=tools(None), is_strict_by_default=True)
    fields = {name: getattr(text_model, name) for name in TextModel.__slots__}

    grammar, _ = await grammar_of(grammars, TextModel(**{**fields, "token_strings": words}), use)

    assert grammar is None


async def test_what_nobody_asked_for_is_refused_once_and_remembered(
    grammars: GrammarChecker, text_model: TextModel
) -> None:
    use = ToolUse(tools=tools(None, parameters=NOT_ENFORCEABLE), is_strict_by_default=True)
    await grammar_of(grammars, text_model, use)

    await grammars.stop()
    await grammar_of(grammars, text_model, use)

    assert grammars._sandbox._process is None


async def test_schema_that_was_asked_for_is_refused_by_function_and_field(
    grammars: GrammarChecker, text_model: TextModel
) -> None:
    use = ToolUse(tools=(*tools(False), Tool(name="g", parameters=NOT_ENFORCEABLE, strict=True)))

    with pytest.raises(InvalidRequest, match=r"of the function 'g' cannot be enforced: .*'not'") as caught:
        await grammar_of(grammars, text_model, use)

    assert (caught.value.code, caught.value.param) == ("invalid_schema", "tools[1].function.parameters")
