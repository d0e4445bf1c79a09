"""Tokenizer folders: what is read from them, and how messages become prompts."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from app.core.chat_template import Conversation, render_conversation
from app.core.renderer import Renderer
from app.core.text import TextModels, load_text_model
from app.core.token_strings import TokenStrings
from app.errors import Internal, InvalidRequest


def conversation(*contents: str, continues_final: bool = False) -> Conversation:
    """User and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Conversation(messages=messages, continues_final=continues_final)


async def rendered(folder: Path, wanted: Conversation) -> str:
    """The prompt."""
    renderer = Renderer()
    try:
        return await render_conversation(renderer, load_text_model(folder), wanted)
    finally:
        await renderer.stop()


async def test_special_tokens_are_added_on_request_only(model_folder: Path) -> None:
    model = load_text_model(model_folder)

    with_bos = await model.encode("The dog", adds_special_tokens=True)

    assert with_bos == [1, *await model.encode("The dog", adds_special_tokens=False)]
    assert model.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert model.begin_ids() == [1]


async def test_long_text_is_encoded_like_a_short_one(model_folder: Path) -> None:
    model = load_text_model(model_folder)
    text = "The dog had a ball. " * 300

    assert await model.encode(text, adds_special_tokens=True) == model.tokenizer.encode(text).ids
    assert model.fewest_tokens(text) <= len(model.tokenizer.encode(text).ids)


async def test_long_texts_do_not_hold_up_the_event_loop(model_folder: Path) -> None:
    model = load_text_model(model_folder)
    encoding = asyncio.create_task(model.encode("The dog had a ball. " * 100_000, adds_special_tokens=True))

    turns = await _turns_until_done(encoding)
    decoding = asyncio.create_task(model.decode_long(await encoding))

    # with the interpreter's lock held there are two or three: before it is taken, and after
    assert turns > 100
    assert await _turns_until_done(decoding) > 100
    assert (await decoding).rstrip().endswith("The dog had a ball.")


async def _turns_until_done(task: asyncio.Task[Any]) -> int:
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


async def test_equal_folders_share_one_model_and_changed_ones_do_not(tmp_path: Path, sentence_piece: Tokenizer) -> None:
    models = TextModels()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        sentence_piece.save(str(tmp_path / name / "tokenizer.json"))
    (tmp_path / "c" / "chat_template.jinja").write_text("hello")

    a, b, c = [await models.get(tmp_path / name) for name in ("a", "b", "c")]

    assert a is b
    assert (a.chat_template, c.chat_template) == (None, "hello")


def test_folder_without_tokenizer_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(Internal):
        load_text_model(tmp_path)


def test_named_templates_have_a_default(model_folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (model_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))

    assert load_text_model(model_folder).chat_template == "plain"


async def test_conversation_ends_with_the_assistants_turn(model_folder: Path) -> None:
    assert await rendered(model_folder, conversation("hi")) == "<user>hi</s>\n<assistant>"


@pytest.mark.parametrize(("final", "end"), [("so it", "<assistant>so it"), ("so it ", "<assistant>so it ")])
async def test_continued_message_stays_open(model_folder: Path, final: str, end: str) -> None:
    prompt = await rendered(model_folder, conversation("hi", final, continues_final=True))

    assert prompt == "<user>hi</s>\n" + end


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{% for m in messages %}<{{ m.role }}>{% endfor %}", "<system><user>"),
        ("{% for m in messages %}{{ 'D' if m.role == 'developer' else 'o' }}{% endfor %}", "Do"),
    ],
    ids=["unknown", "known"],
)
async def test_developer_is_a_system_message_where_the_template_does_not_know_it(
    model_folder: Path, template: str, prompt: str
) -> None:
    (model_folder / "chat_template.jinja").write_text(template)
    messages = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "hi"}]

    assert await rendered(model_folder, Conversation(messages=messages)) == prompt


async def test_model_without_template_names_the_way_out(model_folder: Path) -> None:
    (model_folder / "tokenizer_config.json").unlink()

    with pytest.raises(InvalidRequest, match="/v1/completions"):
        await rendered(model_folder, conversation("hi"))


def test_single_tokens_have_their_own_bytes(tokenizer: Tokenizer) -> None:
    strings = TokenStrings(tokenizer, json.loads(tokenizer.to_str()))
    ids = tokenizer.encode("The dog 😀é", add_special_tokens=False).ids

    assert b"".join(strings.utf8(token_id) for token_id in ids).decode().strip() == "The dog 😀é"
    assert strings.text(tokenizer.token_to_id("</s>")) == "</s>"
    assert any(strings.text(token_id).startswith("bytes:\\x") for token_id in ids)
