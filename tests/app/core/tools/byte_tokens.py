"""A tokenizer with one token per byte and a few special ones, to ask what a grammar allows."""

import re
from typing import Final

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from workers.protocol.grammars import compile_grammar
from workers.protocol.specs import Grammar

SPECIAL_TOKENS: Final = {
    256: "</s>",
    257: "[TOOL_CALLS]",
    258: "[ARGS]",
    259: "[CALL_ID]",
    260: "<|python_tag|>",
    261: "[THINK]",
    262: "[/THINK]",
    264: "<|channel|>",
}
_IDS: Final = {text: token_id for token_id, text in SPECIAL_TOKENS.items()}


class _Bytes:
    """What llguidance wants to know of a tokenizer; 256 ends the text, and 263 is nothing."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = tuple(SPECIAL_TOKENS)
    tokens = (*(bytes([byte]) for byte in range(256)), *(SPECIAL_TOKENS.get(256 + i, "").encode() for i in range(9)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def accepts(grammar: Grammar, text: str) -> bool:
    """True if the text, and then its end, is what the grammar allows.

    `⟦[ARGS]⟧` is the special token; without the brackets it is spelled.
    """
    matcher: LLMatcher = compile_grammar(grammar, LLTokenizer(TokenizerWrapper(_Bytes())))
    assert not matcher.is_error(), matcher.get_error()
    ids: list[int] = []
    for piece in re.split("(⟦[^⟧]*⟧)", text):
        ids += [_IDS[piece[1:-1]]] if piece.startswith("⟦") else list(piece.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
