"""Calls of tools in a model's text: where they begin and end in each family, and what is content around them."""

from dataclasses import dataclass
from typing import Final

from app.core.tools.output import CallPiece, Parsed, held_length, new_call_id
from app.core.tools.reader import CallReader, JsonCallReader, NamedCallReader
from app.core.tools.tagged_reader import Functions, TaggedCallReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one family write calls.

    begin, end: markers around calls, None where there are none. is_bare: JSON as the very first text is a call too, if
    it names a tool. is_tagged, has_named: the forms of TaggedCallReader and NamedCallReader besides JSON. inner: more
    markers, between name and arguments. arguments_key: what the JSON calls them; both are understood.
    """

    begin: str | None = None
    end: str | None = None
    is_bare: bool = False
    is_tagged: bool = False
    has_named: bool = False
    inner: tuple[str, ...] = ()
    arguments_key: str = "arguments"

    def markers(self) -> list[str]:
        """Every one of them."""
        return [marker for marker in (self.begin, self.end, *self.inner) if marker is not None]


FAMILIES: Final[dict[str, Family]] = {
    "hermes": Family(begin="<tool_call>", end="</tool_call>"),
    "qwen3_coder": Family(begin="<tool_call>", end="</tool_call>", is_tagged=True),
    "llama3": Family(begin="<|python_tag|>", is_bare=True, arguments_key="parameters"),
    "mistral": Family(begin="[TOOL_CALLS]", has_named=True, inner=("[ARGS]", "[CALL_ID]")),
    "json": Family(is_bare=True),
}


def forced_family(family: Family | None, *, beside_json: bool) -> Family:
    """In whose syntax calls are enforced, the family's own if it can be: a marker may be a special token, which cannot.

    beside_json: the output may also be JSON that is no call, so that a marker has to tell the two apart.
    """
    if family is not None and family.end is not None:
        return family
    return FAMILIES["hermes" if beside_json else "json"]


class CallParser:
    """One choice's text, divided into content and calls. Whatever is no well-formed call is content.

    White space next to a call belongs to neither. functions: the parameters of each. is_parallel False: calls behind
    the first are left out. is_held: a grammar holds calls to their schemas, and what it does not see as one is none.
    """

    is_reasoning = False

    def __init__(
        self, family: Family, functions: Functions, *, is_parallel: bool = True, is_held: bool = False
    ) -> None:
        self._family = family
        self._functions = functions
        self._is_parallel = is_parallel
        self._is_held = is_held
        self._step = self._read_text
        self._buffer = ""
        self._is_at_start = family.is_bare
        # what has been read since the marker, to become content if no call follows
        self._pending = ""
        self._is_marked = self._has_call = False
        self._reader: CallReader | None = None
        self._num_calls = 0
        self._parsed = Parsed()

    def feed(self, text: str) -> Parsed:
        """See OutputParser."""
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._take()

    def finish(self) -> Parsed:
        """See OutputParser."""
        if self._reader is not None:
            if not self._reader.has_begun:
                self._parsed.content += self._pending + self._reader.raw
        elif not self._has_call:
            self._parsed.content += self._pending + self._buffer
        elif self._step == self._read_text:
            self._parsed.content += self._buffer.rstrip()
        self._buffer = self._pending = ""
        return self._take()

    def _take(self) -> Parsed:
        parsed, self._parsed = self._parsed, Parsed()
        return parsed

    def _read_text(self) -> bool:
        """Content, up to a marker. False: what is left has to wait for more."""
        if self._is_at_start:
            return self._read_start()
        begin = self._family.begin
        if begin is None:
            self._parsed.content += self._buffer
            self._buffer = ""
            return False
        position = self._buffer.find(begin)
        if position >= 0:
            self._emit_before(position)
            end = self._buffer.index(begin) + len(begin)
            self._pending, self._buffer = self._buffer[:end], self._buffer[end:]
            self._is_marked, self._has_call, self._step = True, False, self._read_between
            return True
        self._emit_before(len(self._buffer) - held_length(self._buffer, begin))
        return False

    def _read_start(self) -> bool:
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        self._is_at_start = False
        if stripped[0] in "{[":
            self._pending = self._buffer[: len(self._buffer) - len(stripped)]
            self._buffer = stripped
            self._is_marked, self._step = False, self._read_between
        return True

    def _emit_before(self, position: int) -> None:
        """Content up to here, but for the white space at its end."""
        content = self._buffer[:position].rstrip()
        self._parsed.content += content
        self._buffer = self._buffer[len(content) :]

    def _read_between(self) -> bool:
        """Where a call may begin: behind a marker, and behind another call."""
        family, buffer = self._family, self._buffer
        for marker in (family.begin, family.end):
            if marker is None:
                continue
            if buffer.startswith(marker):
                return self._read_marker(marker)
            if marker.startswith(buffer):
                return False
        char = buffer[0]
        if char.isspace() or char in "[],;" or (self._has_call and char == "}"):
            self._pending += char
            self._buffer = buffer[1:]
        elif char == "{":
            names = None if self._is_marked else frozenset(self._functions)
            self._reader = JsonCallReader(names, is_held=self._is_held)
            self._step = self._read_call
        elif family.is_tagged and char == "<":
            self._reader = TaggedCallReader(self._functions)
            self._step = self._read_call
        elif family.has_named and not self._has_call and (char.isalnum() or char == "_"):
            self._reader = NamedCallReader()
            self._step = self._read_call
        else:
            self._back_to_text()
        return True

    def _read_marker(self, marker: str) -> bool:
        self._pending += marker
        self._buffer = self._buffer[len(marker) :]
        if marker == self._family.begin:
            if self._has_call:
                self._pending = marker
            self._is_marked, self._has_call = True, False
        else:
            self._back_to_text()
        return True

    def _back_to_text(self) -> None:
        """What was read since the marker is content, or the separators behind a call, of which only blanks stay."""
        if self._has_call:
            self._buffer = "".join(char for char in self._pending if char.isspace()) + self._buffer
        else:
            self._parsed.content += self._pending
        self._pending = ""
        self._step = self._read_text

    def _read_call(self) -> bool:
        reader = self._reader
        assert reader is not None
        had_begun = reader.has_begun
        num_read = reader.feed(self._buffer)
        self._buffer = self._buffer[num_read:]
        arguments = reader.take()
        if reader.has_begun and (self._is_parallel or self._num_calls == 0):
            is_first = not had_begun
            if is_first or arguments:
                self._parsed.calls.append(
                    CallPiece(
                        index=self._num_calls,
                        arguments=arguments,
                        id=new_call_id() if is_first else None,
                        name=reader.name if is_first else None,
                    )
                )
        if reader.is_over:
            self._end_call(reader)
        return reader.is_over

    def _end_call(self, reader: CallReader) -> None:
        self._reader = None
        if reader.has_begun:
            self._buffer = reader.unread + self._buffer
            self._pending = ""
            self._has_call = True
            self._num_calls += 1
            self._step = self._read_between
        else:
            self._pending += reader.raw
            self._has_call = False
            self._back_to_text()
