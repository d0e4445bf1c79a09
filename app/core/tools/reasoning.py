"""Thinking aloud: the part of a model's text before the answer proper."""

from enum import Enum, auto
from typing import Final

from app.core.tools.output import OutputParser, Parsed, held_length

# By the name of the parser: what stands before the thinking and behind it.
MARKERS: Final[dict[str, tuple[str, str]]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
}


class _Part(Enum):
    UNKNOWN = auto()
    THINKING = auto()
    ANSWER = auto()


class ReasoningParser:
    """Splits off the thinking, and gives the rest to another parser. White space around the markers is dropped.

    Only text that begins with the marker is thinking. is_open: the prompt has ended with the marker already.
    """

    def __init__(self, markers: tuple[str, str], rest: OutputParser, *, is_open: bool) -> None:
        self._begin, self._end = markers
        self._rest = rest
        self._part = _Part.THINKING if is_open else _Part.UNKNOWN
        # True until something follows a marker that is not white space
        self._is_fresh = True
        self._buffer = ""

    @property
    def is_reasoning(self) -> bool:
        """See OutputParser."""
        return self._part is _Part.THINKING

    def feed(self, text: str) -> Parsed:
        """See OutputParser."""
        if self._part is _Part.ANSWER and not self._is_fresh:
            return self._rest.feed(text)
        self._buffer += text
        parsed = Parsed()
        if self._part is _Part.UNKNOWN or (self._part is _Part.THINKING and self._is_fresh):
            self._look_for_begin()
        if self._part is _Part.THINKING:
            self._read_thinking(parsed)
        if self._part is _Part.ANSWER:
            self._read_answer(parsed)
        return parsed

    def finish(self) -> Parsed:
        """See OutputParser."""
        parsed = Parsed()
        if self._part is _Part.THINKING:
            parsed.reasoning = self._buffer.strip() if self._is_fresh else self._buffer.rstrip()
        elif self._part is _Part.UNKNOWN:
            parsed.add(self._rest.feed(self._buffer))
        self._buffer = ""
        parsed.add(self._rest.finish())
        return parsed

    def _look_for_begin(self) -> None:
        while (stripped := self._buffer.lstrip()).startswith(self._begin):
            self._part = _Part.THINKING
            self._buffer = stripped[len(self._begin) :]
        if self._part is _Part.UNKNOWN and not self._begin.startswith(stripped):
            self._part, self._is_fresh = _Part.ANSWER, False

    def _read_thinking(self, parsed: Parsed) -> None:
        if self._is_fresh:
            self._buffer = self._buffer.lstrip()
            # may still be the marker, which some models repeat behind that of the prompt
            if self._begin.startswith(self._buffer):
                return
            self._is_fresh = False
        position = self._buffer.find(self._end)
        if position >= 0:
            parsed.reasoning = self._buffer[:position].rstrip()
            self._buffer = self._buffer[position + len(self._end) :]
            self._part, self._is_fresh = _Part.ANSWER, True
            return
        certain = self._buffer[: len(self._buffer) - held_length(self._buffer, self._end)].rstrip()
        parsed.reasoning = certain
        self._buffer = self._buffer[len(certain) :]

    def _read_answer(self, parsed: Parsed) -> None:
        answer = self._buffer.lstrip() if self._is_fresh else self._buffer
        self._buffer = ""
        if answer:
            self._is_fresh = False
            parsed.add(self._rest.feed(answer))
