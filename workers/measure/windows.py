"""Sliding windows over one long text: which tokens are read, and which of them are scored.

The definition of the Hugging Face documentation ("Perplexity of fixed-length models"): windows begin every `stride`
tokens, and each scores only the tokens that no earlier window has, with all of the window before them as context. The
first token of a text has no context and is never scored. A stride as long as the window is the cheapest and the least
favourable to the model: the first token of every window goes unscored, the second sees one token.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Tokens [begin, end) of the text are read; [first, end) are scored, from the logits one position earlier."""

    begin: int
    first: int
    end: int


def sliding_windows(num_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Windows of at most `window` tokens, `stride` apart, until the text's last token. stride: 1 to window."""
    scored_to = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        first = max(scored_to, begin + 1)
        if first < end:
            yield Window(begin=begin, first=first, end=end)
        scored_to = end
        if end == num_tokens:
            return
