"""Text to token ids and back, per variant folder, with the `tokenizers` library alone."""

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from app.core.template_abilities import TemplateAbilities
from app.core.token_strings import TokenStrings
from app.errors import Internal

logger = logging.getLogger(__name__)

# Encoding takes about 1 us per byte, and without pre-tokenizer much more: longer texts leave the event loop alone.
MAX_INLINE_CHARS: Final = 2_000
MAX_INLINE_TOKENS: Final = 10_000
MAX_CACHED: Final = 16
_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A tokenizer and what belongs to it.

    special_tokens: bos_token and its kin, by name. longest_token_chars: no token covers more characters of a prompt.
    tool_template: for conversations with tools, where there is one of its own. abilities: what is known of templates.
    """

    tokenizer: Tokenizer
    token_strings: TokenStrings
    chat_template: str | None
    special_tokens: dict[str, str]
    longest_token_chars: int
    tool_template: str | None = None
    abilities: dict[str, TemplateAbilities] = field(default_factory=dict)

    def template(self, *, with_tools: bool) -> str | None:
        """The chat template for conversations with tools, or for those without."""
        return self.tool_template if with_tools and self.tool_template is not None else self.chat_template

    async def encode(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        """Token ids; long texts are encoded in a thread, which does not hold the interpreter's lock meanwhile."""
        if len(text) <= MAX_INLINE_CHARS:
            return self.tokenizer.encode(text, add_special_tokens=adds_special_tokens).ids
        return await asyncio.to_thread(self._encode_long, text, adds_special_tokens)

    async def decode_long(self, token_ids: list[int]) -> str:
        """The text of any number of tokens, special ones included; many are decoded likewise."""
        if len(token_ids) <= MAX_INLINE_TOKENS:
            return self.decode(token_ids, skips_special_tokens=False)
        decoded = await asyncio.to_thread(self.tokenizer.decode_batch, [token_ids], skip_special_tokens=False)
        return decoded[0]

    def decode(self, token_ids: list[int], *, skips_special_tokens: bool) -> str:
        """The text of these tokens."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=skips_special_tokens)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the number of tokens, known without encoding.

        Normalizers may shorten a text (compose accents, join blanks); by four is more than any we know does.
        """
        return len(text) // (4 * self.longest_token_chars)

    def begin_ids(self) -> list[int]:
        """What a text without any token of its own begins with: bos_token, or eos_token where there is none."""
        for name in ("bos_token", "eos_token"):
            token_id = self.tokenizer.token_to_id(self.special_tokens.get(name, ""))
            if token_id is not None:
                return [token_id]
        return []

    def special_token_texts(self) -> dict[int, str]:
        """What special tokens are called, by id, in order."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in sorted(added.items()) if token.special}

    def special_ids(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of the texts that are special tokens, by id."""
        wanted = frozenset(texts)
        return {token_id: text for token_id, text in self.special_token_texts().items() if text in wanted}

    def _encode_long(self, text: str, adds_special_tokens: bool) -> list[int]:
        # of the library's methods only those for batches release the lock, and this one works out no offsets
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=adds_special_tokens)[0].ids


class TextModels:
    """The text models in use, one per content: the variants of a base share theirs."""

    def __init__(self) -> None:
        self._by_fingerprint: OrderedDict[str, TextModel] = OrderedDict()
        self._fingerprints: dict[Path, str] = {}
        self._turn = asyncio.Lock()

    async def get(self, folder: Path) -> TextModel:
        """The text model of a variant's folder, read once."""
        found = self._by_fingerprint.get(self._fingerprints.get(folder, ""))
        if found is not None:
            return found
        async with self._turn:
            fingerprint = await asyncio.to_thread(_fingerprint, folder)
            if fingerprint not in self._by_fingerprint:
                self._by_fingerprint[fingerprint] = await asyncio.to_thread(load_text_model, folder)
                if len(self._by_fingerprint) > MAX_CACHED:
                    self._by_fingerprint.popitem(last=False)
            self._fingerprints[folder] = fingerprint
            return self._by_fingerprint[fingerprint]

    def forget(self, folder: Path) -> None:
        """Read this folder again at its next use: its files may have changed."""
        self._fingerprints.pop(folder, None)


def load_text_model(folder: Path) -> TextModel:
    """Read tokenizer, template and special tokens. Blocking: up to a second for a large vocabulary."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise Internal("This variant has no tokenizer.json; register its base again.", code="no_tokenizer")
    source = path.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    longest = max((len(token) for token in tokenizer.get_vocab(with_added_tokens=True)), default=1)
    return TextModel(
        tokenizer=tokenizer,
        token_strings=TokenStrings(tokenizer, json.loads(source)),
        chat_template=_chat_template(folder, config),
        tool_template=_named_templates(config).get("tool_use"),
        special_tokens=_special_tokens({**_read_json(folder / "special_tokens_map.json"), **config}),
        longest_token_chars=max(longest, 1),
    )


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, str):
        return template
    named = _named_templates(config)
    return named.get("default", next(iter(named.values()), None))


def _named_templates(config: dict[str, Any]) -> dict[str, str]:
    template = config.get("chat_template")
    return {item["name"]: item["template"] for item in template} if isinstance(template, list) else {}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Older files write a token as an object with its flags, newer ones as a string."""
    tokens: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()
