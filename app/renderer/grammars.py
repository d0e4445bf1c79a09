"""Whether a grammar may go to a worker: it compiles within the limits, and some text begins as it wants."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

from app.renderer.schemas import SchemaRefused, check_schema
from workers.protocol.grammars import compile_grammar
from workers.protocol.specs import Grammar

MAX_ERROR_CHARS: Final = 300
_NUM_BYTES: Final = 256
_DEAD_END: Final = "NoExtension"
_TOO_WIDE: Final = re.compile(r"Current row has \d+ items")
_OVERLAP: Final = "oneOf constraints are not supported"
# Some grammars exceed the limits only behind the first byte.
_NUM_STEPS: Final = 4


class GrammarRefused(Exception):
    """The grammar cannot be enforced; the text is for the client."""


def check(grammar: Grammar, special_tokens: Sequence[tuple[int, str]] = ()) -> None:
    """Compile the grammar and take its first steps. Raises GrammarRefused with what is wrong with it."""
    try:
        if grammar.kind == "json_schema":
            check_schema(grammar.text)
        matcher = compile_grammar(grammar, _tokenizer(tuple(special_tokens)))
    except (SchemaRefused, ValueError) as error:
        raise GrammarRefused(_clipped(str(error))) from error
    for _ in range(_NUM_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            raise GrammarRefused(_said(matcher.get_error()))
        if matcher.is_stopped():
            break
        lowest = (mask & -mask).bit_length() - 1
        matcher.consume_token(lowest)


@lru_cache(maxsize=16)
def _tokenizer(special_tokens: tuple[tuple[int, str], ...]) -> LLTokenizer:
    """A stand-in for the model's own, which would take half a second to read: one token per byte.

    Special tokens have their own ids, as grammars name them by id, and the bytes stand behind all of them.
    """
    return LLTokenizer(TokenizerWrapper(_Bytes(special_tokens)))


class _Bytes:
    """What llguidance wants to know of a tokenizer. The token behind the bytes ends the text."""

    bos_token_id = None

    def __init__(self, special_tokens: tuple[tuple[int, str], ...]) -> None:
        self._first_byte = max((token_id for token_id, _ in special_tokens), default=-1) + 1
        self.eos_token_id = self._first_byte + _NUM_BYTES
        self.tokens = [b""] * self._first_byte + [bytes([byte]) for byte in range(_NUM_BYTES)] + [b""]
        for token_id, token in special_tokens:
            self.tokens[token_id] = token.encode()
        self.special_token_ids = [token_id for token_id, _ in special_tokens] + [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return [self._first_byte + byte for byte in text]


def _said(error: str) -> str:
    """The library's first lines, without its excerpts of the text."""
    if error.startswith(_DEAD_END):
        return "no text matches it"
    if error.startswith("panic"):
        return "the grammar library fails on it"
    if _TOO_WIDE.search(error):
        return "too much may follow at one place, such as more than 900 optional properties of an object"
    if error.startswith(_OVERLAP):
        return "a value may match two members of a 'oneOf'; write 'anyOf', or tell them apart by a constant"
    lines = [line.strip() for line in error.replace("<non-verbose/>", "").splitlines()]
    return _clipped(" ".join(line for line in lines if re.search(r"\w", line)))


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"
