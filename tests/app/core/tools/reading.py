"""Feeds a parser and says what came out."""

import itertools
from typing import NamedTuple

from app.core.tools.output import OutputParser, Parsed


class Said(NamedTuple):
    """content, reasoning, and each call's name and arguments."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]


def read(parser: OutputParser, *pieces: str) -> Said:
    """The sum of what a parser makes of these pieces; what it gives must be in the order of a stream."""
    whole = Parsed()
    for piece in pieces:
        whole.add(parser.feed(piece))
    whole.add(parser.finish())
    calls: list[tuple[str, str]] = []
    for piece in whole.calls:
        if piece.name is not None:
            assert piece.id is not None
            assert piece.id.startswith("call_")
            assert piece.index == len(calls)
            calls.append((piece.name, piece.arguments))
        else:
            assert piece.id is None
            assert piece.arguments
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    return Said(whole.content, whole.reasoning, calls)


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces, cut at these places."""
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]
