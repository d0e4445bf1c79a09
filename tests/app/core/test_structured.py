"""The front end asks another process about grammars, within limits, and remembers what was good."""

import json
import os
import signal
from collections.abc import AsyncIterator

import pytest

from app import embedded
from app.core import sandbox
from app.core.structured import GrammarChecker, in_lark, json_schema_grammar
from app.core.text import TextModel, load_text_model
from app.errors import InvalidRequest
from workers.protocol.specs import Grammar

PERSON = {"$defs": {"age": {"type": "integer"}}, "type": "object", "properties": {"age": {"$ref": "#/$defs/age"}}}


@pytest.fixture(scope="module")
def text_model() -> TextModel:
    return load_text_model(embedded.model_path())


@pytest.fixture
async def checker() -> AsyncIterator[GrammarChecker]:
    made = GrammarChecker()
    yield made
    await made.stop()


@pytest.mark.parametrize(
    ("grammar", "code"),
    [
        pytest.param(json_schema_grammar({"not": {}}), "invalid_schema", id="schema"),
        pytest.param(Grammar(kind="json_schema", text=json.dumps("x" * 2**16)), "invalid_schema", id="64-kib"),
        pytest.param(Grammar(kind="regex", text="("), "invalid_regex", id="regex"),
        pytest.param(Grammar(kind="regex", text="é" * 2**15 + "a"), "invalid_regex", id="64-kib-in-utf8"),
        pytest.param(Grammar(kind="choice", text=json.dumps(["a" * 2**16])), "invalid_choice", id="choice"),
        pytest.param(Grammar(kind="lark", text="start: <|nobody|>"), "invalid_grammar", id="lark"),
    ],
)
async def test_bad_grammar_is_refused_by_code_and_param(
    checker: GrammarChecker, text_model: TextModel, grammar: Grammar, code: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await checker.check(grammar, text_model, param="here")

    assert (caught.value.code, caught.value.param) == (code, "here")
    assert len(caught.value.message) < 400


async def test_good_grammar_is_remembered_and_needs_no_process_again(
    checker: GrammarChecker, text_model: TextModel
) -> None:
    grammar = json_schema_grammar(PERSON)
    await checker.check(grammar, text_model, param="here")

    await checker.stop()
    await checker.check(grammar, text_model, param="here")

    assert checker._sandbox._process is None


async def test_schemas_can_be_parts_of_a_lark_grammar_that_names_the_model_s_tokens(
    checker: GrammarChecker, text_model: TextModel
) -> None:
    rules = f'start: "<call>" args "</call>" <|end|>\nargs: {in_lark(json_schema_grammar(PERSON))} | object\n'
    rules += f"object: {in_lark(Grammar(kind='json_object'))} | {in_lark(json_schema_grammar(True))}"

    await checker.check(Grammar(kind="lark", text=rules), text_model, param="tools")


async def test_checker_that_does_not_answer_is_stopped_and_the_next_one_checks(
    checker: GrammarChecker, text_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await checker.check(Grammar(kind="regex", text="a"), text_model, param="here")
    process = checker._sandbox._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)

    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "STALL_LIMIT_S", 0.1)
        with pytest.raises(InvalidRequest, match="make it simpler"):
            await checker.check(Grammar(kind="regex", text="b"), text_model, param="here")

    await checker.check(Grammar(kind="regex", text="b"), text_model, param="here")
