"""Readers of one call each, character by character, so that arguments can be passed on while they are written.

A reader that breaks before the arguments have begun has read no call; one that breaks later has read a call that ends
there: small models forget the last brace.
"""

import json
import re
from enum import Enum, auto
from typing import Any, Final

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ARGUMENT_KEYS: Final = frozenset({"arguments", "parameters"})
_CALL_KEYS: Final = _ARGUMENT_KEYS | {"name", "type", "id"}


class Nesting:
    """Finds the end of a JSON object, array or string whose first character is fed first."""

    __slots__ = ("_depth", "_is_escaped", "_is_in_string")

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    def ends_with(self, char: str) -> bool:
        """True if this character is the value's last."""
        if self._is_in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._is_in_string = False
                return self._depth == 0
        elif char == '"':
            self._is_in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


class CallReader:
    """What the readers have in common. raw: all text read while no call has begun.

    has_begun: `name` is known, and `take` gives the arguments. is_over: the call is complete, or broken. unread: of
    what was read before it broke, the end that is none of the call's.
    """

    def __init__(self) -> None:
        self.raw = self.unread = ""
        self.name = ""
        self.has_begun = self.is_over = False
        self._arguments: list[str] = []
        self._opening = ""

    def feed(self, text: str) -> int:
        """Read on; how many characters belonged to the call. Fewer than all of them only if it is over."""
        for position, char in enumerate(text):
            if self.is_over:
                return position
            if not self._accepts(char):
                self.is_over = True
                return position
            if not self.has_begun:
                self.raw += char
        return len(text)

    def take(self) -> str:
        """The arguments that are new since the last time."""
        taken = "".join(self._arguments)
        self._arguments.clear()
        return taken

    def _begin(self, arguments: str) -> None:
        self.has_begun = True
        self._arguments.append(arguments)

    def _pass_on(self, char: str) -> bool:
        """The next character of the arguments. They begin with the first member: `{'a': 1}` is no JSON, and no call."""
        if self.has_begun:
            self._arguments.append(char)
            return True
        self._opening += char
        if char.isspace() or self._opening == "{":
            return True
        if char in '"}':
            self._begin(self._opening)
        return self.has_begun

    def _accepts(self, char: str) -> bool:
        raise NotImplementedError


class _State(Enum):
    OBJECT = auto()
    FIRST_KEY = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    IN_SCALAR = auto()
    NEXT = auto()


class JsonCallReader(CallReader):
    """`{"name": ..., "arguments": {...}}`, also with `parameters`, in any order, with other members beside them.

    names: the functions there are, None for any. Where they are given, the object may as well be no call at all, and
    a member that calls do not have says so. is_held: what stands before the name must be as `strict_grammar` sees it,
    that is no arguments and nothing escaped.
    """

    def __init__(self, names: frozenset[str] | None, *, is_held: bool = False) -> None:
        super().__init__()
        self._names = names
        self._is_held = is_held
        self._state = _State.OBJECT
        self._nesting = Nesting()
        self._text: list[str] = []
        self._key = ""
        self._held_arguments: str | None = None
        self._is_streaming = False

    def _accepts(self, char: str) -> bool:
        match self._state:
            case _State.IN_KEY | _State.IN_VALUE:
                return self._read_on(char)
            case _State.IN_SCALAR:
                return self._read_scalar(char)
        if char.isspace():
            return True
        match self._state:
            case _State.OBJECT:
                self._state = _State.FIRST_KEY
                return char == "{"
            case _State.FIRST_KEY | _State.KEY:
                return self._open_key(char)
            case _State.COLON:
                self._state = _State.VALUE
                return char == ":"
            case _State.VALUE:
                return self._open_value(char)
            case _:
                return self._after_value(char)

    def _open_key(self, char: str) -> bool:
        if char == "}" and self._state is _State.FIRST_KEY:
            return self._close()
        self._state, self._nesting, self._text = _State.IN_KEY, Nesting(), [char]
        return char == '"' and not self._nesting.ends_with(char)

    def _open_value(self, char: str) -> bool:
        if char not in '{["':
            self._state, self._text = _State.IN_SCALAR, [char]
            return char not in "}],:"
        self._state, self._nesting, self._text = _State.IN_VALUE, Nesting(), []
        self._is_streaming = (
            char == "{" and self._key in _ARGUMENT_KEYS and bool(self.name) and self._held_arguments is None
        )
        return self._read_on(char)

    def _read_on(self, char: str) -> bool:
        is_end = self._nesting.ends_with(char)
        if self._is_streaming:
            if is_end:
                self._state, self._is_streaming, self._held_arguments = _State.NEXT, False, ""
            return self._pass_on(char)
        self._text.append(char)
        if not is_end:
            return True
        if self._state is _State.IN_KEY:
            return self._end_key()
        self._state = _State.NEXT
        return self._end_value()

    def _read_scalar(self, char: str) -> bool:
        if char not in ",}" and not char.isspace():
            self._text.append(char)
            return True
        self._state = _State.NEXT
        return self._end_value() and self._accepts(char)

    def _end_key(self) -> bool:
        text = "".join(self._text)
        key = _json(text)
        self._key, self._state = str(key), _State.COLON
        if self._is_held and not self.name and ("\\" in text or self._key in _ARGUMENT_KEYS):
            return False
        return key is not _INVALID and (self._names is None or self._key in _CALL_KEYS)

    def _end_value(self) -> bool:
        text = "".join(self._text)
        if self._is_held and not self.name and ("\\" in text or not text.startswith('"')):
            return False
        if self._key != "name" and self._key not in _ARGUMENT_KEYS:
            return True
        value = _json(text)
        if self._key == "name":
            if not isinstance(value, str) or not _NAME.fullmatch(value) or self.name:
                return False
            self.name = value
            if self._names is not None and value not in self._names:
                return False
        elif self._held_arguments is None:
            self._held_arguments = _object_text(value, text)
            if self._held_arguments is None:
                return False
        if self.name and self._held_arguments and not self.has_begun:
            self._begin(self._held_arguments)
        return True

    def _after_value(self, char: str) -> bool:
        if char == "}":
            return self._close()
        self._state = _State.KEY
        return char == ","

    def _close(self) -> bool:
        if not self.has_begun and self.name:
            self._begin("{}")
        self.is_over = True
        return True


class NamedCallReader(CallReader):
    """`name{...}`, with `[CALL_ID]...` and `[ARGS]` between the two in some versions."""

    _HEAD: Final = re.compile(r"([A-Za-z0-9_.-]{1,64})(\[CALL_ID\][A-Za-z0-9_-]*)?(\[ARGS\])?\s*")
    _HEAD_CHARS: Final = re.compile(r"[A-Za-z0-9_.\-\[\]\s]")
    _MAX_HEAD_CHARS: Final = 160

    def __init__(self) -> None:
        super().__init__()
        self._nesting = Nesting()

    def _accepts(self, char: str) -> bool:
        if not self.name:
            if char != "{":
                return len(self.raw) < self._MAX_HEAD_CHARS and self._HEAD_CHARS.fullmatch(char) is not None
            head = self._HEAD.fullmatch(self.raw)
            if head is None:
                return False
            self.name = head[1]
        self.is_over = self._nesting.ends_with(char)
        return self._pass_on(char)


_INVALID: Final = object()


def _json(text: str) -> Any:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return _INVALID


def _object_text(value: Any, text: str) -> str | None:
    """Arguments as the text of an object; models also write them as a string of it, or null. None if they are none."""
    if isinstance(value, str):
        text, value = value, _json(value)
    if value is None:
        return "{}"
    return text if isinstance(value, dict) else None
