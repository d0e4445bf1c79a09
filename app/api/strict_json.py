"""JSON as RFC 8259 has it: no NaN, no byte order mark, no duplicate keys, no bottomless nesting, no lone surrogates.

Nothing here may take longer than its bytes are many: it runs on the event loop, before anybody has looked at the body.
"""

import json
import re
from array import array
from itertools import accumulate
from typing import Any, Final, NoReturn

from app.errors import InvalidRequest

MAX_DEPTH: Final = 64
# Python builds about three million of them a second, and nobody else runs meanwhile.
MAX_NODES: Final = 2**17
# Possessive, and a string that is not closed reaches to the end: without either, looking for its quote in vain takes
# time exponential in its length, or quadratic.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes) -> Any:
    """The value. Raises InvalidRequest with code invalid_json, json_too_deep, json_too_complex or invalid_unicode."""
    check_structure(data)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not valid UTF-8") from error
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _invalid(f"line {error.lineno}, column {error.colno}") from error
    except ValueError as error:
        raise _invalid("a number has too many digits") from error
    except RecursionError as error:
        raise InvalidRequest("The JSON body is nested too deep.", code="json_too_deep") from error
    if _SURROGATE_ESCAPE.search(data):
        _refuse_surrogates(value, "")
    return value


def check_structure(data: bytes) -> None:
    """Raises InvalidRequest if arrays and objects nest too deep, or they or their members are too many.

    What is inside strings does not count. A running sum over +1 and -1, all of it in C: 4 MiB of brackets take 0.1 s.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH and data.count(b":") <= MAX_NODES:
        return
    bare = _STRING.sub(b"", data)
    steps = bare.translate(_STEPS, delete=_NOT_BRACKETS)
    if max(accumulate(array("b", steps)), default=0) > MAX_DEPTH:
        raise InvalidRequest(f"The JSON body is nested more than {MAX_DEPTH} levels deep.", code="json_too_deep")
    if max(steps.count(1), bare.count(b":")) > MAX_NODES:
        raise InvalidRequest(
            f"The JSON body has more than {MAX_NODES} arrays and objects, or members of objects.",
            code="json_too_complex",
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _invalid("an object has the same key twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"{name} is not a JSON value")


def _invalid(detail: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid JSON: {detail}.", code="invalid_json")


def _refuse_surrogates(value: Any, path: str) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                "A string holds half of a surrogate pair, which is no character.",
                code="invalid_unicode",
                param=path or None,
            ) from error
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key, path)
            _refuse_surrogates(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{path}[{index}]")
