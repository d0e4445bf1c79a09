"""Markers in a Lark grammar: each may be a special token, or be spelled by tokens of text."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

# A terminal of every grammar that has free text.
TEXT: Final = "TEXT: /(?s:.+)/"
# As `str.isspace` has them.
BLANKS: Final = r"[\s\x1c-\x1f]*"


class MarkerRules:
    """Terms of rules. special_tokens: by id."""

    def __init__(self, special_tokens: Mapping[int, str]) -> None:
        self._special_tokens = special_tokens

    def free(self, *but: str) -> str:
        """Any text and any special token but these markers."""
        others = self.others(*but)
        return f"(TEXT | {others})*" if others else "TEXT?"

    def others(self, *but: str) -> str:
        """One special token that is none of these; empty if there are none."""
        return _tokens([token_id for token_id, text in self._special_tokens.items() if text not in but])

    def marker(self, text: str, lazy_rule: str, *, before: str = "") -> str:
        """The rule that spells the marker, or its token behind `before`."""
        return f"({lazy_rule}{self.or_token(text, before=before)})"

    def or_token(self, text: str, *, before: str = "") -> str:
        """The alternative that the marker is a token; empty if it is none."""
        found = _tokens([token_id for token_id, token in self._special_tokens.items() if token == text])
        return f" | {before}{found}" if found else ""


def lazy(rule: str, pattern: str) -> str:
    """A rule that ends where it has matched first, so that the text before it cannot go on."""
    return f"{rule}[lazy]: /{pattern}/"


def regex(text: str) -> str:
    """This text between the slashes of a regular expression."""
    return re.escape(text).replace("/", r"\/")


def _tokens(token_ids: Sequence[int]) -> str:
    """The tokens as a term of a rule; empty if there are none."""
    ranges: list[list[int]] = []
    for token_id in sorted(token_ids):
        if ranges and ranges[-1][1] == token_id - 1:
            ranges[-1][1] = token_id
        else:
            ranges.append([token_id, token_id])
    return f"<[{','.join(f'{first}-{last}' for first, last in ranges)}]>" if ranges else ""
