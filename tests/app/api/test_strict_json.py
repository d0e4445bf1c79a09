"""JSON as the standard has it, and a name for every way of breaking it."""

import contextlib
import time

import pytest

from app.api.strict_json import MAX_NODES, check_structure, parse_json
from app.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(b"", "invalid_json", id="empty"),
        pytest.param(b'{"a": 1, ', "invalid_json", id="malformed"),
        pytest.param(b'{"a": NaN}', "invalid_json", id="nan"),
        pytest.param(b'{"a": -Infinity}', "invalid_json", id="infinity"),
        pytest.param(b'{"a": "\xff\xfe"}', "invalid_json", id="invalid-utf8"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', "invalid_json", id="byte-order-mark"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "invalid_json", id="5000-digits"),
        pytest.param(b'{"a": 1, "a": 2}', "invalid_json", id="duplicate-key"),
        pytest.param(b'{"a": 1}x', "invalid_json", id="trailing-garbage"),
        pytest.param(b"[" * 65 + b"]" * 65, "json_too_deep", id="65-levels"),
        pytest.param(b'{"a":' * 65 + b"1" + b"}" * 65, "json_too_deep", id="65-objects"),
        pytest.param(b"[" * 100_000, "json_too_deep", id="bottomless"),
        pytest.param(b'[{"a":' * 40 + b"1" + b"}]" * 40, "json_too_deep", id="mixed"),
        pytest.param(b"[]" * 70 + b'"[[\\"[[', "invalid_json", id="unclosed-string"),
        pytest.param(b"[]" * 70 + b'"[[\\', "invalid_json", id="unclosed-escape"),
        pytest.param(b"[" + b"{}," * MAX_NODES + b"1]", "json_too_complex", id="too-many-objects"),
        pytest.param(b"{" + b'"a":1,' * MAX_NODES + b'"b":1}', "json_too_complex", id="too-many-members"),
    ],
)
def test_broken_json_is_refused_by_name(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}, id="plain"),
        pytest.param(b'"\\u0000"', "\0", id="nul"),
        pytest.param(b'"\\ud83d\\ude00"', "😀", id="surrogate-pair"),
        pytest.param(b'"' + b"[" * 1000 + b'"', "[" * 1000, id="brackets-in-a-string"),
        pytest.param(b'"' + b":" * 140_000 + b'"', ":" * 140_000, id="colons-in-a-string"),
        pytest.param(b'["\\"[[", ' + b"[]," * 500 + b"1]", ['"[[', *[[]] * 500, 1], id="wide-but-flat"),
    ],
)
def test_good_json_passes(body: bytes, value: object) -> None:
    assert parse_json(body) == value


def test_64_levels_are_allowed() -> None:
    parse_json(b"[" * 64 + b"]" * 64)


def test_lone_surrogate_is_named_with_its_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(b'{"messages": [{"content": "\\ud800"}]}')

    assert (caught.value.code, caught.value.param) == ("invalid_unicode", "messages[0].content")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 4_000_000, id="open"),
        pytest.param(b"[]," * 1_300_000, id="flat"),
        pytest.param(b"[" * 2_000_000 + b"]" * 2_000_000, id="closed"),
        pytest.param((b"[" * 60 + b"]" * 60) * 33_000, id="waves"),
        pytest.param(b"[" * 65 + b'"' + b"a" * 4_000_000, id="unclosed-string"),
        pytest.param(b"[" * 65 + b'"' + b'\\"' * 2_000_000, id="unclosed-string-of-quotes"),
        pytest.param(b"[" * 65 + b'"' + b"\\" * 3_999_999, id="unclosed-string-of-backslashes"),
    ],
)
def test_structure_of_megabytes_are_looked_at_in_no_time(body: bytes) -> None:
    start_s = time.process_time()
    with contextlib.suppress(InvalidRequest):
        check_structure(body)

    assert time.process_time() - start_s < 1
