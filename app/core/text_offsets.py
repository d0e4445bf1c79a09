"""Where each token begins in the text of a completion: `text_offset`, counted in characters.

A token's own text is not always in the completion's: special tokens may be left out, SentencePiece begins a text with
a blank that decoding takes away, and the bytes of one character may be several tokens, which begin where it does.
"""

from collections.abc import Sequence
from typing import Final

from app.core.token_strings import TokenStrings

_CONTINUATION: Final = bytes(range(0x80, 0xC0))


class TextOffsets:
    """The places of one choice's tokens, chunk by chunk. shows_special: generated special tokens are in the text."""

    def __init__(self, strings: TokenStrings, *, shows_special: bool = False) -> None:
        self._strings = strings
        self._shows_special = shows_special
        self._num_chars = 0

    def add_prompt(self, token_ids: Sequence[int], text: str) -> list[int]:
        """Of an echoed prompt. text: begins with the prompt as it is echoed, which tells what of a token is shown."""
        offsets = []
        for token_id in token_ids:
            token, place = self._strings.text(token_id), self._num_chars
            is_hidden = self._strings.is_special(token_id) and not text.startswith(token, place)
            content = b"" if is_hidden else self._strings.utf8(token_id)
            offsets.append(self._add(_without_lost_blank(content, text, place)))
        return offsets

    def add(self, token_ids: Sequence[int], text: str = "") -> list[int]:
        """Of generated tokens. text: of these, as far as it is known; it matters at the very beginning only."""
        offsets = []
        for token_id in token_ids:
            is_shown = self._shows_special or not self._strings.is_special(token_id)
            content = self._strings.utf8(token_id) if is_shown else b""
            if self._num_chars == 0 and text:
                content = _without_lost_blank(content, text, 0)
            offsets.append(self._add(content))
        return offsets

    def _add(self, content: bytes) -> int:
        is_inside = content[:1] in _CONTINUATION and content != b""
        offset = max(self._num_chars - is_inside, 0)
        # every character has one byte that does not continue another
        self._num_chars += len(content.translate(None, _CONTINUATION))
        return offset


def _without_lost_blank(content: bytes, text: str, place: int) -> bytes:
    return content[1:] if content.startswith(b" ") and not text.startswith(" ", place) else content
