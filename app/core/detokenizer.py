"""Token ids to text, one token at a time, without ever cutting a character.

New text is decode(tail + new)[len(decode(tail)):], never decode(new): a token's text can depend on the one before it
(leading blanks of SentencePiece). A tail that ends inside a UTF-8 character decodes to U+FFFD, so text that ends so
waits for the next token.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from tokenizers import Tokenizer

REPLACEMENT: Final = "\ufffd"
# Enough for the tail to begin on a whole character and a whole word in every tokenizer we know.
PROMPT_TAIL_TOKENS: Final = 6
# A UTF-8 character has at most 4 bytes: text that still ends in U+FFFD after this many tokens is no character at all.
MAX_PENDING_TOKENS: Final = 12


class Detokenizer:
    """The text of one choice, as its tokens come in. visible: special tokens that are not skipped, and their texts."""

    __slots__ = ("_ids", "_prefix_length", "_read", "_skips_special", "_tokenizer", "_visible")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        skips_special_tokens: bool = True,
        visible: Mapping[int, str] | None = None,
    ) -> None:
        self._visible = visible if visible is not None and skips_special_tokens else {}
        self._tokenizer = tokenizer
        self._skips_special = skips_special_tokens
        self._ids = list(prompt_ids[-PROMPT_TAIL_TOKENS:])
        self._read = len(self._ids)
        # a prompt may end inside a character, which then belongs to the text that completes it
        self._prefix_length = len(self._decode(self._ids).rstrip(REPLACEMENT))

    def feed(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        if token_id in self._visible:
            return self.flush() + self._visible[token_id]
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and len(self._ids) - self._read < MAX_PENDING_TOKENS:
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as U+FFFD."""
        if len(self._ids) == self._read:
            return ""
        return self._take(self._decode(self._ids))

    def _take(self, text: str) -> str:
        new = text[self._prefix_length :]
        # The tokens just read are the tail for the next ones. Tokens without text (special ones) are forgotten: after
        # them alone a SentencePiece decoder would strip the next leading blank.
        if new:
            self._ids = self._ids[self._read :]
            self._read = len(self._ids)
            self._prefix_length = len(self._decode(self._ids))
        else:
            del self._ids[self._read :]
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skips_special)
