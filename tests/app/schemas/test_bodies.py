"""Every broken rule of a body has its code and names its field."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.chat import to_conversation
from app.api.validation import to_invalid_request
from app.core.tools.use import ToolUse
from app.schemas.chat import ChatRequest
from app.schemas.comparison import CompareGenerateBody, ConstraintsBody
from app.schemas.completions import CompletionRequest
from app.schemas.generate import GenerateRequest
from app.schemas.jobs import MeasureBody
from app.schemas.tokenize import TokenizeRequest
from workers.protocol.specs import Grammar

USER = {"role": "user", "content": "hi"}
CHAT = {"model": "a", "messages": [USER]}
OWN = (CompareGenerateBody, ConstraintsBody, MeasureBody)
ONE_PART = [{"type": "text", "text": "hi"}]

JSON_SCHEMA = "response_format.json_schema"
BAD_STRUCTURE = [
    pytest.param(
        {"response_format": {"type": "json_schema"}}, "missing_required_parameter", JSON_SCHEMA, id="no-json-schema"
    ),
    pytest.param(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "missing_required_parameter",
        f"{JSON_SCHEMA}.schema",
        id="no-schema",
    ),
    pytest.param(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
        "invalid_type",
        f"{JSON_SCHEMA}.schema",
        id="schema-list",
    ),
    pytest.param({"response_format": "json"}, "invalid_type", "response_format", id="format-string"),
    pytest.param(
        {"response_format": {"type": "text", "schema": {}}}, "invalid_value", "response_format.schema", id="text-schema"
    ),
    pytest.param(
        {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {}}}},
        "invalid_value",
        "response_format.schema",
        id="two-schemas",
    ),
    pytest.param({"structured_outputs": {}}, "invalid_value", "structured_outputs", id="nothing-asked"),
    pytest.param(
        {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "invalid_value", "structured_outputs", id="two-asked"
    ),
    pytest.param({"structured_outputs": {"json": 5}}, "invalid_type", "structured_outputs.json", id="json-number"),
    pytest.param({"structured_outputs": {"choice": []}}, "empty_array", "structured_outputs.choice", id="no-choices"),
    pytest.param(
        {"structured_outputs": {"regex": "a", "structural_tag": "x"}},
        "invalid_value",
        "structured_outputs.structural_tag",
        id="structural-tag",
    ),
    pytest.param(
        {"structured_outputs": {"regex": "a", "foo": 1}}, "unknown_parameter", "structured_outputs.foo", id="unknown"
    ),
    pytest.param(
        {"structured_outputs": {"regex": "a"}, "guided_regex": "a"},
        "invalid_value",
        "structured_outputs.regex",
        id="both",
    ),
    pytest.param(
        {"response_format": {"type": "json_object"}, "guided_json": {}}, "invalid_value", "response_format", id="three"
    ),
]


def said(model: type[BaseModel], body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Code and param of the refusal."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = to_invalid_request(caught.value)
    assert len(error.message) < 3000
    return error.code, error.param


def message(**fields: Any) -> dict[str, Any]:
    """A chat whose only message has these fields."""
    return {"messages": [{**USER, **fields}]}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        pytest.param({"model": 5}, "invalid_type", "model", id="model-int"),
        pytest.param({"messages": []}, "empty_array", "messages", id="no-messages"),
        pytest.param({"messages": "hi"}, "invalid_type", "messages", id="messages-string"),
        pytest.param({"messages": [None]}, "invalid_type", "messages[0]", id="message-null"),
        pytest.param({"messages": [USER] * 3000}, "array_above_max_length", "messages", id="3000-messages"),
        pytest.param(message(role="wizard"), "invalid_value", "messages[0].role", id="role"),
        pytest.param(message(content=5), "invalid_type", "messages[0].content", id="content-number"),
        pytest.param(message(content=None), "missing_required_parameter", "messages[0].content", id="no-content"),
        pytest.param(
            message(content=[*ONE_PART, {"type": "image_url"}]),
            "unsupported_content",
            "messages[0].content[1]",
            id="image",
        ),
        pytest.param({"max_tokens": 0}, "integer_below_min_value", "max_tokens", id="max-tokens-0"),
        pytest.param({"max_tokens": "3"}, "invalid_type", "max_tokens", id="max-tokens-string"),
        pytest.param({"max_tokens": True}, "invalid_type", "max_tokens", id="max-tokens-true"),
        pytest.param({"max_tokens": 1.5}, "invalid_type", "max_tokens", id="max-tokens-float"),
        pytest.param({"n": 0}, "integer_below_min_value", "n", id="n-0"),
        pytest.param({"n": 17}, "integer_above_max_value", "n", id="n-17"),
        pytest.param({"n": 10**30}, "integer_above_max_value", "n", id="n-huge"),
        pytest.param({"temperature": -0.1}, "decimal_below_min_value", "temperature", id="temperature-low"),
        pytest.param({"temperature": float("inf")}, "invalid_value", "temperature", id="temperature-1e400"),
        pytest.param({"top_p": 0}, "decimal_below_min_value", "top_p", id="top-p-0"),
        pytest.param({"top_p": 1.1}, "decimal_above_max_value", "top_p", id="top-p-high"),
        pytest.param({"top_k": -5}, "integer_below_min_value", "top_k", id="top-k"),
        pytest.param({"presence_penalty": 2.01}, "decimal_above_max_value", "presence_penalty", id="penalty"),
        pytest.param({"repetition_penalty": 0}, "decimal_below_min_value", "repetition_penalty", id="repetition"),
        pytest.param({"seed": 2**63}, "integer_above_max_value", "seed", id="seed"),
        pytest.param({"stop": ["a"] * 17}, "array_above_max_length", "stop", id="17-stops"),
        pytest.param({"stop": [5]}, "invalid_type", "stop[0]", id="stop-number"),
        pytest.param({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias", id="bias-key"),
        pytest.param({"logit_bias": {"5": 101}}, "decimal_above_max_value", "logit_bias.5", id="bias-value"),
        pytest.param({"top_logprobs": 21, "logprobs": True}, "integer_above_max_value", "top_logprobs", id="top-21"),
        pytest.param({"top_logprobs": 2}, "invalid_value", "top_logprobs", id="top-without-logprobs"),
        pytest.param({"stream": "yes"}, "invalid_type", "stream", id="stream-string"),
        pytest.param({"stream_options": {}}, "invalid_value", "stream_options", id="options-without-stream"),
        pytest.param({"response_format": {"type": "foo"}}, "invalid_value", "response_format.type", id="format"),
        *BAD_STRUCTURE,
        pytest.param({"modalities": ["audio"]}, "unsupported_parameter", "modalities", id="audio"),
        pytest.param(
            {"chat_template_kwargs": {"tokenize": True}}, "unsupported_parameter", "chat_template_kwargs", id="kwargs"
        ),
        pytest.param(
            {"continue_final_message": True, "add_generation_prompt": True},
            "invalid_value",
            "continue_final_message",
            id="continue-and-add",
        ),
    ],
)
def test_chat_names_rule_and_field(fields: dict[str, Any], code: str, param: str) -> None:
    assert said(ChatRequest, {**CHAT, **fields}) == (code, param)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_chat_needs_model_and_messages(missing: str) -> None:
    body = {name: value for name, value in CHAT.items() if name != missing}

    assert said(ChatRequest, body) == ("missing_required_parameter", missing)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        pytest.param({"prompt": []}, "empty_array", "prompt", id="empty"),
        pytest.param({"prompt": [[]]}, "empty_array", "prompt[0]", id="empty-inside"),
        pytest.param({"prompt": [-1]}, "integer_below_min_value", "prompt[0]", id="negative-id"),
        pytest.param({"prompt": [2**40]}, "integer_above_max_value", "prompt[0]", id="huge-id"),
        pytest.param({"prompt": ["a"] * 65}, "array_above_max_length", "prompt", id="65-prompts"),
        pytest.param({"prompt": 5}, "invalid_type", "prompt", id="number"),
        pytest.param({"prompt": ["a", 5]}, "invalid_type", "prompt[1]", id="mixed"),
        pytest.param({"prompt": "a", "best_of": 2}, "unsupported_parameter", "best_of", id="best-of"),
        pytest.param({"prompt": "a", "max_tokens": 0}, "integer_below_min_value", "max_tokens", id="zero-without-echo"),
    ],
)
def test_completion_names_rule_and_field(fields: dict[str, Any], code: str, param: str) -> None:
    assert said(CompletionRequest, {"model": "a", **fields}) == (code, param)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_prompt_has_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert CompletionRequest.model_validate({"model": "a", "prompt": prompt}).prompts() == prompts


def test_our_own_body_refuses_what_it_does_not_know() -> None:
    assert said(GenerateRequest, {"model": "a", "prompt": "x", "foo": 1}) == ("unknown_parameter", "foo")
    assert said(GenerateRequest, {"model": "a"}) == ("missing_required_parameter", "prompt")
    assert said(TokenizeRequest, {"model": "a", "prompt": "x", "messages": [USER]}) == ("invalid_value", "messages")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"prompt": "x"}, "missing_required_parameter", "base"),
        ({"base": "a", "variants": ["a/b"], "prompt": "x"}, "invalid_value", "variants"),
        ({"base": "a"}, "missing_required_parameter", "prompt"),
        ({"base": "a", "prompt": "x", "messages": [USER]}, "invalid_value", "messages"),
        ({"variants": [], "prompt": "x"}, "empty_array", "variants"),
        ({"base": "a", "prompt": "x", "n": 2}, "unknown_parameter", "n"),
    ],
    ids=["no-base", "base-and-variants", "no-prompt", "prompt-and-messages", "no-variants", "unknown"],
)
def test_comparison_wants_one_base_and_one_prompt(body: dict[str, Any], code: str, param: str) -> None:
    assert said(CompareGenerateBody, body) == (code, param)


def test_openai_body_names_what_it_does_not_know() -> None:
    body = ChatRequest.model_validate({**CHAT, "foo": 1, "user": "me", "functions": None, "use_beam_search": False})

    assert body.unknown_fields() == ["foo"]


def test_known_but_unsupported_fields_are_found_unless_they_ask_for_nothing() -> None:
    assert ChatRequest.first_unsupported({**CHAT, "functions": [], "audio": None}) is None


@pytest.mark.parametrize(
    "fields",
    [{"functions": [{"name": "f"}]}, {"web_search_options": {}}, {"bad_words": ["x"]}, {"grammar": "root ::= x"}],
    ids=lambda one: "".join(one),
)
def test_known_but_unsupported_fields_are_found(fields: dict[str, Any]) -> None:
    found = ChatRequest.first_unsupported({**CHAT, **fields})

    assert found is not None
    assert found[0] in fields


def test_assistant_may_have_thought_and_said_nothing() -> None:
    for name in ("reasoning", "reasoning_content"):
        body = ChatRequest.model_validate(
            {**CHAT, "messages": [USER, {"role": "assistant", "content": None, name: "Hm."}, USER]}
        )

        assert body.messages[1].for_template() == {
            "role": "assistant",
            "content": "",
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
        }


def test_reasoning_effort_reaches_the_template_unless_its_switch_says_another() -> None:
    body = ChatRequest.model_validate({**CHAT, "reasoning_effort": "low"})
    both = ChatRequest.model_validate(
        {**CHAT, "reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}
    )

    assert to_conversation(body, ToolUse()).switches == {"reasoning_effort": "low"}
    assert to_conversation(both, ToolUse()).switches == {"reasoning_effort": "high"}


def numbers(schema: Any) -> list[dict[str, Any]]:
    """Every number in a JSON schema."""
    found: list[dict[str, Any]] = []
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "const" not in schema:
            found.append(schema)
        for value in schema.values():
            found += numbers(value)
    elif isinstance(schema, list):
        for value in schema:
            found += numbers(value)
    return found


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, GenerateRequest, TokenizeRequest, *OWN])
def test_every_number_has_a_lower_and_an_upper_bound(model: type[BaseModel]) -> None:
    for number in numbers(model.model_json_schema()):
        assert number.keys() & {"minimum", "exclusiveMinimum"}, number
        assert number.keys() & {"maximum", "exclusiveMaximum"}, number


SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'


@pytest.mark.parametrize(
    ("fields", "grammar", "param"),
    [
        pytest.param({}, None, None, id="nothing"),
        pytest.param({"response_format": {"type": "text"}}, None, None, id="text"),
        pytest.param(
            {"response_format": {"type": "json_object"}}, Grammar(kind="json_object"), "response_format", id="object"
        ),
        pytest.param(
            {"response_format": {"type": "json_object", "schema": {"enum": [1]}}},
            Grammar(kind="json_schema", text='{"enum":[1]}'),
            "response_format.schema",
            id="object-of-a-schema",
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "schema": {"enum": [1]}}},
            Grammar(kind="json_schema", text='{"enum":[1]}'),
            "response_format.schema",
            id="schema-beside-its-type",
        ),
        pytest.param(
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
                }
            },
            Grammar(kind="json_schema", text=TEXT),
            "response_format.json_schema.schema",
            id="schema-in-its-order",
        ),
        pytest.param(
            {"structured_outputs": {"json": SCHEMA, "regex": None, "disable_any_whitespace": False}},
            Grammar(kind="json_schema", text=TEXT),
            "structured_outputs.json",
            id="vllm-schema",
        ),
        pytest.param(
            {"structured_outputs": {"json": " {}"}},
            Grammar(kind="json_schema", text=" {}"),
            "structured_outputs.json",
            id="vllm-schema-text",
        ),
        pytest.param(
            {"structured_outputs": {"json_object": True}},
            Grammar(kind="json_object"),
            "structured_outputs.json_object",
            id="vllm-object",
        ),
        pytest.param(
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": ""}},
            Grammar(kind="regex", text=""),
            "structured_outputs.regex",
            id="vllm-regex",
        ),
        pytest.param(
            {"structured_outputs": {"grammar": "start: x"}},
            Grammar(kind="lark", text="start: x"),
            "structured_outputs.grammar",
            id="vllm-grammar",
        ),
        pytest.param(
            {"guided_choice": ["a", "b"]}, Grammar(kind="choice", text='["a", "b"]'), "guided_choice", id="old-choice"
        ),
        pytest.param({"guided_json": SCHEMA}, Grammar(kind="json_schema", text=TEXT), "guided_json", id="old-schema"),
        pytest.param({"guided_regex": "a"}, Grammar(kind="regex", text="a"), "guided_regex", id="old-regex"),
        pytest.param({"guided_grammar": "x"}, Grammar(kind="lark", text="x"), "guided_grammar", id="old-grammar"),
    ],
)
def test_wanted_structure_is_read_wherever_it_is_written(
    fields: dict[str, Any], grammar: Grammar | None, param: str | None
) -> None:
    for model, rest in ((ChatRequest, CHAT), (CompletionRequest, {"model": "a", "prompt": "x"})):
        constraint = model.model_validate({**rest, **fields}).constraint()

        assert (constraint and constraint.grammar, constraint and constraint.param) == (grammar, param)
