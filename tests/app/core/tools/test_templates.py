"""Templates of every family get tools, calls and results in the form that they want; those that want none, in words."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from app.core.answers import AnswerRules, family_of, thinking_of
from app.core.chat_template import Conversation, render_conversation
from app.core.renderer import Renderer
from app.core.template_abilities import TemplateAbilities
from app.core.template_probe import template_abilities
from app.core.text import TextModel, load_text_model
from app.core.tools.calls import FAMILIES
from app.core.tools.reasoning import MARKERS
from app.core.tools.use import Tool, ToolUse
from app.errors import InvalidRequest
from workers.protocol.specs import Grammar

TEMPLATES = Path(__file__).parent / "templates"
WEATHER = Tool(
    name="get_weather", description="Ask", parameters={"type": "object", "properties": {"city": {"type": "string"}}}
)
ARGUMENTS = '{"city": "Köln", "days": 2}'
CALL_ID = "call_0011223344556677"
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": CALL_ID, "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
        ],
    },
    {"role": "tool", "tool_call_id": CALL_ID, "content": "sunny"},
]


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer()
    yield made
    await made.stop()


@pytest.fixture
def text_model(request: pytest.FixtureRequest, tmp_path: Path, byte_level: Tokenizer) -> TextModel:
    """The text model of the template that the test names."""
    byte_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (tmp_path / "chat_template.jinja").write_text((TEMPLATES / f"{request.param}.jinja").read_text("utf-8"))
    return load_text_model(tmp_path)


@pytest.mark.parametrize(
    ("text_model", "abilities"),
    [
        ("hermes", TemplateAbilities(True, "dict")),
        ("qwen3_coder", TemplateAbilities(True, "dict")),
        ("llama3", TemplateAbilities(True, "dict")),
        ("mistral", TemplateAbilities(True, "dict", has_short_ids=True)),
        ("text_arguments", TemplateAbilities(True, "text")),
        ("plain", TemplateAbilities(False, None)),
    ],
    indirect=["text_model"],
)
async def test_abilities_are_seen_in_what_is_rendered(
    renderer: Renderer, text_model: TextModel, abilities: TemplateAbilities
) -> None:
    assert text_model.chat_template is not None
    assert await template_abilities(renderer, text_model, text_model.chat_template) == abilities


async def test_template_that_gets_stuck_is_asked_again_another_time(
    renderer: Renderer, tmp_path: Path, byte_level: Tokenizer
) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    model = load_text_model(tmp_path)

    with pytest.raises(InvalidRequest, match="more than 2 s"):
        await render_conversation(renderer, model, Conversation(messages=CALLED))

    assert model.abilities == {}


@pytest.mark.parametrize(
    ("text_model", "shown"),
    [
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}</tool_call>'),
        (
            "qwen3_coder",
            "<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>",
        ),
        ("llama3", '{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}'),
        ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}, "id": "'),
        ("text_arguments", f"call get_weather {ARGUMENTS}\n"),
        ("plain", f'<assistant>{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n'),
    ],
    indirect=["text_model"],
)
async def test_earlier_calls_and_results_are_in_the_prompt(
    renderer: Renderer, text_model: TextModel, shown: str
) -> None:
    prompt = await render_conversation(
        renderer, text_model, Conversation(messages=CALLED, tool_use=ToolUse(tools=(WEATHER,)))
    )

    assert shown in prompt
    assert "sunny" in prompt
    assert "get_weather" in prompt.replace(shown, "")


@pytest.mark.parametrize("text_model", ["mistral"], indirect=True)
async def test_ids_that_a_template_refuses_become_short_and_stay_equal(
    renderer: Renderer, text_model: TextModel
) -> None:
    prompt = await render_conversation(renderer, text_model, Conversation(messages=CALLED))

    short = prompt.partition('"id": "')[2].partition('"')[0]
    assert len(short) == 9
    assert f'"call_id": "{short}"' in prompt


@pytest.mark.parametrize("arguments", ["", "not json", "[1]", '"x"', "[" * 2000], ids=len)
@pytest.mark.parametrize("text_model", ["hermes", "text_arguments", "plain"], indirect=True)
async def test_arguments_that_are_no_object_are_no_error(
    renderer: Renderer, text_model: TextModel, arguments: str
) -> None:
    call = {"id": CALL_ID, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [CALLED[0], {**CALLED[1], "tool_calls": [call]}, CALLED[2]]

    assert "sunny" in await render_conversation(renderer, text_model, Conversation(messages=messages))


@pytest.mark.parametrize("text_model", ["plain"], indirect=True)
@pytest.mark.parametrize("family", ["hermes", "json"])
async def test_template_without_tools_gets_them_in_the_system_message(
    renderer: Renderer, text_model: TextModel, family: str
) -> None:
    system = {"role": "system", "content": "Be brief."}
    alone = Conversation(messages=CALLED[:1], tool_use=ToolUse(tools=(WEATHER,)))
    both = Conversation(messages=[system, *CALLED[:1]], tool_use=ToolUse(tools=(WEATHER,)))

    prompts = [await render_conversation(renderer, text_model, one, FAMILIES[family]) for one in (alone, both)]

    for prompt in prompts:
        assert prompt.count("<system>") == 1
        assert '{"name":"get_weather","description":"Ask","parameters":{"type":"object"' in prompt
        assert ("<tool_call>" in prompt) == (family == "hermes")
    assert prompts[1].startswith("<system>Be brief.\n\n")


@pytest.mark.parametrize("text_model", ["plain"], indirect=True)
async def test_results_of_one_turn_are_one_message_in_words(renderer: Renderer, text_model: TextModel) -> None:
    prompt = await render_conversation(renderer, text_model, Conversation(messages=[*CALLED, CALLED[2]]))

    assert prompt.endswith("<user>Result of get_weather: sunny\nResult of get_weather: sunny\n<assistant>")


@pytest.mark.parametrize("text_model", ["llama3"], indirect=True)
async def test_what_a_template_refuses_stays_refused(renderer: Renderer, text_model: TextModel) -> None:
    messages = [CALLED[0], {**CALLED[1], "tool_calls": CALLED[1]["tool_calls"] * 2}, CALLED[2]]

    with pytest.raises(InvalidRequest, match="one call at a time"):
        await render_conversation(renderer, text_model, Conversation(messages=messages))


@pytest.mark.parametrize(
    ("text_model", "family", "thinking"),
    [
        ("hermes", "hermes", "think"),
        ("qwen3_coder", "qwen3_coder", "think"),
        ("llama3", "llama3", None),
        ("mistral", "mistral", None),
        ("text_arguments", "json", "think"),
        ("plain", "json", None),
    ],
    indirect=["text_model"],
)
def test_parsers_go_by_the_template_unless_they_are_named(
    text_model: TextModel, family: str, thinking: str | None
) -> None:
    assert family_of("auto", text_model) is FAMILIES[family]
    assert family_of("llama3", text_model) is FAMILIES["llama3"]
    assert family_of("none", text_model) is None
    assert thinking_of("auto", text_model) == (None if thinking is None else MARKERS[thinking])
    assert thinking_of("mistral", text_model) == MARKERS["mistral"]
    assert thinking_of("none", text_model) is None


@pytest.mark.parametrize(
    ("fields", "is_closed"),
    [
        pytest.param({"may_think": False, "asked": Grammar(kind="json_object")}, True, id="unwanted"),
        pytest.param({"may_think": False, "tool_use": ToolUse(choice="required")}, True, id="unwanted-before-a-call"),
        pytest.param({"asked": Grammar(kind="json_object")}, False, id="wanted"),
        # a template that goes on thinking knows no other way
        pytest.param({"may_think": False}, False, id="unwanted-before-text"),
    ],
)
def test_opened_thinking_is_closed_before_a_grammar_where_the_client_wants_none(
    fields: dict[str, Any], is_closed: bool
) -> None:
    rules = AnswerRules(thinking=MARKERS["think"], **fields)

    assert rules.closed("<assistant><think>\n") == "<assistant><think>\n" + "\n</think>\n\n" * is_closed
    assert rules.closed("<assistant>") == "<assistant>"


def test_template_for_tools_is_used_with_tools(tmp_path: Path, byte_level: Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    named = '[{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]'
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": {named}}}')
    model = load_text_model(tmp_path)

    assert (model.template(with_tools=True), model.template(with_tools=False)) == ("t", "d")
