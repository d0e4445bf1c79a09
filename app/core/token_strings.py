"""What a single token looks like: its text and its bytes, for log probabilities and /tokenize.

A token alone cannot be decoded: decoders strip the leading blank of a word and replace a piece of a UTF-8 character.
"""

import re
from typing import Any, Final

from tokenizers import Tokenizer

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_START: Final = "\u2581"


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table of printable characters for bytes, from the character to the byte.

    Printable bytes stand for themselves; the others are moved, in order, to 256 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    moved = [byte for byte in range(256) if byte not in printable]
    table.update({chr(256 + index): byte for index, byte in enumerate(moved)})
    return table


_BYTES: Final = _byte_of_character()


class TokenStrings:
    """Text and bytes of single tokens; each is worked out once.

    spell_every_byte: tokens can be any text, as they must where a grammar forms the output.
    """

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any]) -> None:
        kinds = _decoder_kinds(definition.get("decoder"))
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in kinds
        self.spell_every_byte = self._is_byte_level or "ByteFallback" in kinds
        self._marks_words = bool(kinds & {"Metaspace", "Replace"})
        self._added = {int(token["id"]): str(token["content"]) for token in definition.get("added_tokens") or ()}
        self._special = {
            int(token["id"]) for token in definition.get("added_tokens") or () if token.get("special") is True
        }
        self._known: dict[int, tuple[str, bytes]] = {}

    def is_special(self, token_id: int) -> bool:
        """True for a token that stands for no text, such as the beginning of a prompt."""
        return token_id in self._special

    def text(self, token_id: int) -> str:
        """The token's text; a piece of a character reads `bytes:\\xe2`, as OpenAI writes it."""
        return self._look_up(token_id)[0]

    def utf8(self, token_id: int) -> bytes:
        """The token's bytes."""
        return self._look_up(token_id)[1]

    def _look_up(self, token_id: int) -> tuple[str, bytes]:
        known = self._known.get(token_id)
        if known is None:
            content = self._bytes(token_id)
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
            known = self._known[token_id] = (text, content)
        return known

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level and all(character in _BYTES for character in token):
            return bytes(_BYTES[character] for character in token)
        if (match := _BYTE_TOKEN.fullmatch(token)) is not None:
            return bytes([int(match[1], 16)])
        if self._marks_words:
            return token.replace(_WORD_START, " ").encode()
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _decoder_kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    kinds = {str(decoder.get("type"))}
    for part in decoder.get("decoders") or ():
        kinds |= _decoder_kinds(part)
    return kinds
