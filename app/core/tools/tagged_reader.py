"""The reader of calls in tags, one for each argument: bare text, whose type only the function's schema tells."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from app.core.tools.reader import CallReader
from app.core.tools.schema_types import types_of

Functions = Mapping[str, Mapping[str, Any] | None]

_FUNCTION: Final = "<function="
_PARAMETER: Final = "<parameter="
_END_OF_FUNCTION: Final = "</function>"
_END_OF_PARAMETER: Final = "</parameter>"
_NAMED_TAG: Final = re.compile(r"<(?:function|parameter)=([^\s<>=]{1,64})>")
_MAX_TAG_CHARS: Final = 80


class TaggedCallReader(CallReader):
    """`<function=name><parameter=key>value</parameter>...</function>`, each on lines of its own.

    functions: the parameters of each, as JSON Schema. An argument is passed on when it is complete.
    """

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self._functions = functions
        self._tag = ""
        self._key: str | None = None
        self._value = ""

    def _accepts(self, char: str) -> bool:
        if self._key is not None:
            self._value += char
            if char == ">" and self._value.endswith(_END_OF_PARAMETER):
                text = self._value.removesuffix(_END_OF_PARAMETER).removeprefix("\n").removesuffix("\n")
                self._end_argument(self._key, text)
            return True
        if char.isspace() and not self._tag:
            return True
        self._tag += char
        expected = (_PARAMETER, _END_OF_FUNCTION) if self.name else (_FUNCTION,)
        is_possible = any(one.startswith(self._tag) or self._tag.startswith(one) for one in expected)
        if is_possible and len(self._tag) <= _MAX_TAG_CHARS and (char != ">" or self._end_tag()):
            return True
        self._close()
        self.unread = self._tag[:-1]
        return False

    def _end_tag(self) -> bool:
        tag = self._tag
        if tag == _END_OF_FUNCTION:
            if not self.has_begun:
                self._begin("{")
            self._close()
            self.is_over = True
            return True
        named = _NAMED_TAG.fullmatch(tag)
        if named is None:
            return False
        if self.name:
            self._key = named[1]
        else:
            self.name = named[1]
        self._tag = ""
        return True

    def _end_argument(self, key: str, text: str) -> None:
        types = _types(self._functions.get(self.name), key)
        if _is_json(types) and _breaks_off_in_string(text):
            return
        head = ", " if self.has_begun else "{"
        value = _value(text, types)
        self._begin(f"{head}{json.dumps(key, ensure_ascii=False)}: {value}")
        self._key, self._value = None, ""

    def _close(self) -> None:
        """A call that breaks off has the arguments that it has."""
        if self.has_begun:
            self._begin("}")


def _types(parameters: Mapping[str, Any] | None, key: str) -> set[str]:
    """The JSON types that a parameter may have, as far as its schema says so at once."""
    root = parameters or {}
    properties = root.get("properties")
    return types_of(properties.get(key), root) if isinstance(properties, dict) else set()


def _is_json(types: set[str]) -> bool:
    return bool(types) and "string" not in types


def _breaks_off_in_string(text: str) -> bool:
    """True if the end tag behind this text is part of a string in it."""
    try:
        json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False


def _value(text: str, types: set[str]) -> str:
    """The text as JSON: of a string, unless the parameter is of another type and the text can be read as one."""
    if _is_json(types) or (types - {"string"} and text == "null"):
        # models also write Python's True, False and None
        for written in (text, {"True": "true", "False": "false", "None": "null"}.get(text, text)):
            try:
                return json.dumps(json.loads(written), ensure_ascii=False, allow_nan=False)
            except (ValueError, RecursionError):
                continue
    return json.dumps(text, ensure_ascii=False)
