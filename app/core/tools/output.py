"""The three things that an answer consists of, and what turns text into them."""

import secrets
from typing import Protocol

from msgspec import Struct


class CallPiece(Struct, frozen=True, kw_only=True):
    """News of one call. The first piece has id and name; `arguments` of all pieces together are the whole text."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class Parsed(Struct, kw_only=True):
    """What some text has turned out to be."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = []

    @property
    def is_empty(self) -> bool:
        """True if nothing is certain yet."""
        return not (self.content or self.reasoning or self.calls)

    def add(self, more: "Parsed") -> None:
        """Append what comes next."""
        self.content += more.content
        self.reasoning += more.reasoning
        self.calls += more.calls


class OutputParser(Protocol):
    """Reads one choice's text in pieces, wherever they are cut: the sum of what it gives is always the same."""

    @property
    def is_reasoning(self) -> bool:
        """True while what comes is thinking."""
        ...

    def feed(self, text: str) -> Parsed:
        """What is certain after this piece."""
        ...

    def finish(self) -> Parsed:
        """What was held back, when nothing comes any more."""
        ...


class PlainOutput:
    """All text is content."""

    is_reasoning = False

    def feed(self, text: str) -> Parsed:
        """The text itself."""
        return Parsed(content=text)

    def finish(self) -> Parsed:
        """Nothing is held back."""
        return Parsed()


class NamedCallOutput:
    """All text is the arguments of one call whose function the client has named."""

    is_reasoning = False

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def feed(self, text: str) -> Parsed:
        """The next piece of the arguments."""
        name, self._name = self._name, None
        call_id = None if name is None else new_call_id()
        return Parsed(calls=[CallPiece(index=0, arguments=text, id=call_id, name=name)])

    def finish(self) -> Parsed:
        """A call without any text has no arguments at all."""
        return Parsed() if self._name is None else self.feed("")


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


def held_length(text: str, marker: str) -> int:
    """How many characters at the end of the text could be the beginning of the marker."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0
