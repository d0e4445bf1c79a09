"""The echo model behind a template of one's own: the last message says, token by token, what the model answers.

What follows `<|say|>` in the prompt is repeated up to `<|end|>`, the stop token that every request of `saying` names.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from app_servers import echo_settings, running_app
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.core.entries import echo_entry
from app.core.load_request import LoadRequest
from workers.protocol.specs import EchoSpec

SPECIAL = ("<s>", "<|say|>", "<|end|>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
# Qwen's tokenizers have these as tokens, and not as special ones.
PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")


@asynccontextmanager
async def replaying(folder: Path, templates: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with one variant `echo/<name>` for each template."""
    async with running_app(echo_settings(folder / "data", echo_itl_s=0)) as (app, client):
        server = app.state.server
        for name, template in templates.items():
            text_folder = folder / name
            tokenizer = _write_text_model(text_folder, template)
            spec = EchoSpec(vocab_size=tokenizer.get_vocab_size(), repeats_after=tokenizer.token_to_id("<|say|>"))
            entry = echo_entry(name, server.supervisor, server.catalog.pulse, text_folder, spec)
            server.catalog._entries[entry.row.id] = entry
            await server.loader.load(LoadRequest(model=entry.row.id), wait=True)
        yield client


def saying(model: str, text: str, **fields: Any) -> dict[str, Any]:
    """A chat whose answer is this text."""
    messages = [{"role": "user", "content": f"<|say|>{text}<|end|>"}]
    return {"model": model, "messages": messages, "stop_token_ids": [SPECIAL.index("<|end|>")], **fields}


def _write_text_model(folder: Path, template: str) -> Tokenizer:
    """One token per byte, and the markers."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(PLAIN))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|end|>"}))
    (folder / "chat_template.jinja").write_text(template)
    return tokenizer
