"""Bad input over a real socket: each case has its answer, and the next good request works."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sse_reading import chat, completion

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON_TYPE = "content-type: application/json"


def talk(served: str, data: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send bytes; status, headers and error object of the answer."""
    address = urlsplit(served)
    with socket.create_connection((address.hostname, address.port), timeout=60) as sock:
        sock.sendall(data)
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(2**16)
        head, _, body = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", "0")):
            body += sock.recv(2**16)
    try:
        error = json.loads(body).get("error", {})
    except ValueError:
        error = {}
    return int(status_line.split()[1]), headers, error


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {len(body)}", *(headers or (JSON_TYPE,))]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat_text(extra: str) -> bytes:
    """A chat body with something written into it that json.dumps would not write."""
    return f'{{"model": "echo/main", "messages": [{{"role": "user", "content": "hi"}}], {extra}}}'.encode()


BODIES = [
    pytest.param(CHAT, b"", 400, "invalid_json", None, id="empty"),
    pytest.param(CHAT, b'{"model": "a", ', 400, "invalid_json", None, id="malformed"),
    pytest.param(CHAT, b"[1,2]", 400, "invalid_type", None, id="array"),
    pytest.param(CHAT, b'"x"', 400, "invalid_type", None, id="string"),
    pytest.param(CHAT, b"null", 400, "invalid_type", None, id="null"),
    pytest.param(CHAT, b"42", 400, "invalid_type", None, id="number"),
    pytest.param(CHAT, chat_text('"temperature": NaN'), 400, "invalid_json", None, id="nan"),
    pytest.param(CHAT, chat_text('"temperature": 1e400'), 400, "invalid_value", "temperature", id="1e400"),
    pytest.param(CHAT, b'{"model": "\\ud800"}', 400, "invalid_unicode", "model", id="lone-surrogate"),
    pytest.param(CHAT, chat_text('"user": "\xff"').decode().encode("latin-1"), 400, "invalid_json", None, id="utf8"),
    pytest.param(CHAT, b"\xef\xbb\xbf" + chat_text('"n": 1'), 400, "invalid_json", None, id="bom"),
    pytest.param(CHAT, chat_text('"n": ' + "9" * 5000), 400, "invalid_json", None, id="5000-digits"),
    pytest.param(CHAT, b"[" * 1000 + b"]" * 1000, 400, "json_too_deep", None, id="depth-1000"),
    pytest.param(CHAT, chat_text('"n": 1') + b"x", 400, "invalid_json", None, id="trailing"),
    pytest.param(CHAT, chat_text('"n": 1, "n": 2'), 400, "invalid_json", None, id="duplicate-key"),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), BODIES)
def test_broken_body_is_refused_by_name(
    served: str, path: str, body: bytes, status: int, code: str, param: str | None
) -> None:
    got_status, headers, error = talk(served, post(path, body))

    assert (got_status, error.get("code"), error.get("param")) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert "x-request-id" in headers


def with_schema(schema: Any) -> dict[str, Any]:
    """The field by which OpenAI's clients ask for a JSON Schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


SCHEMA = "response_format.json_schema.schema"
DEPTH_33: dict[str, Any] = {}
for _ in range(32):
    DEPTH_33 = {"items": DEPTH_33}
CYCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}

BAD_STRUCTURE = [
    pytest.param(chat(), with_schema(DEPTH_33), 400, "invalid_schema", SCHEMA, id="schema-depth-33"),
    pytest.param(chat(), with_schema({"title": "x" * 2**16}), 400, "invalid_schema", SCHEMA, id="schema-65-kib"),
    pytest.param(chat(), with_schema(CYCLE), 400, "invalid_schema", SCHEMA, id="reference-cycle"),
    pytest.param(chat(), with_schema({"$ref": "http://a.example/b"}), 400, "invalid_schema", SCHEMA, id="reference"),
    pytest.param(chat(), with_schema({"not": {}}), 400, "invalid_schema", SCHEMA, id="keyword"),
    pytest.param(
        chat(),
        {"structured_outputs": {"regex": "(a{1000}){1000}"}},
        400,
        "invalid_regex",
        "structured_outputs.regex",
        id="huge-regex",
    ),
    pytest.param(
        completion(),
        {"structured_outputs": {"grammar": "start: start"}},
        400,
        "invalid_grammar",
        "structured_outputs.grammar",
        id="endless-grammar",
    ),
    pytest.param(completion(), {"guided_json": "{"}, 400, "invalid_schema", "guided_json", id="guided-no-json"),
]

FIELDS = [
    pytest.param(chat(), {"model": "a\0b"}, 404, "model_not_found", "model", id="nul-in-model"),
    pytest.param(chat(), {"model": "../../etc/passwd"}, 404, "model_not_found", "model", id="traversal"),
    pytest.param(chat(), {"model": "x" * 300}, 404, "model_not_found", "model", id="300-characters"),
    pytest.param(chat(), {"max_tokens": 4096}, 400, "context_length_exceeded", "max_tokens", id="no-room"),
    pytest.param(chat(), {"max_tokens": 10**9}, 400, "context_length_exceeded", "max_tokens", id="huge-max-tokens"),
    pytest.param(chat("dog " * 5000), {}, 400, "context_length_exceeded", "messages", id="long-prompt"),
    pytest.param(chat("x" * 3_000_000), {}, 400, "context_length_exceeded", "messages", id="3-megabytes"),
    pytest.param(chat(), {"stop_token_ids": [10**6]}, 400, "invalid_value", "stop_token_ids", id="stop-token"),
    pytest.param(chat(), {"logit_bias": {"1000000": 1}}, 400, "invalid_value", "logit_bias", id="bias"),
    pytest.param(chat(), {"min_tokens": 13}, 400, "invalid_value", "min_tokens", id="min-over-max"),
    pytest.param(chat(), {"audio": {}, "tools": [{}]}, 400, "unsupported_parameter", "tools", id="tools"),
    pytest.param(chat(), {"chat_template": "x"}, 400, "unsupported_parameter", "chat_template", id="template"),
    pytest.param(chat(), {"stream_options": {}}, 400, "invalid_value", "stream_options", id="stream-options"),
    *BAD_STRUCTURE,
    pytest.param(chat(), {"n": 17}, 400, "integer_above_max_value", "n", id="n-17"),
    pytest.param(completion(), {"prompt": []}, 400, "empty_array", "prompt", id="no-prompt"),
    pytest.param(completion(), {"prompt": [10**6]}, 400, "integer_above_max_value", "prompt[0]", id="id-range"),
    pytest.param(completion(), {"suffix": "x"}, 400, "unsupported_parameter", "suffix", id="suffix"),
    pytest.param(completion(), {"best_of": 2}, 400, "unsupported_parameter", "best_of", id="best-of"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("body", "fields", "status", "code", "param"), FIELDS)
async def test_bad_field_is_refused_by_name(
    http: httpx.AsyncClient,
    body: dict[str, Any],
    fields: dict[str, Any],
    status: int,
    code: str,
    param: str,
    stream: bool,
) -> None:
    if "stream_options" in fields and stream:
        pytest.skip("stream_options are right in a stream")
    path = CHAT if "messages" in body else COMPLETIONS

    answer = await http.post(path, json={**body, **fields, "stream": stream})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert len(error["message"]) < 600


REQUESTS = [
    pytest.param(post(CHAT, b"{}", "content-type: text/plain"), 415, "unsupported_media_type", id="text"),
    pytest.param(post(CHAT, b"{}", "x: y"), 415, "unsupported_media_type", id="no-type"),
    pytest.param(post(CHAT, b"a=b", "content-type: application/x-www-form-urlencoded"), 415, None, id="form"),
    pytest.param(post("/v1/foo", b"{}"), 404, None, id="unknown-url"),
    pytest.param(b"GET /v1/completions HTTP/1.1\r\nhost: localhost\r\n\r\n", 405, "method_not_supported", id="method"),
    pytest.param(post(CHAT, b"{}", JSON_TYPE, "origin: http://evil.example"), 403, "origin_not_allowed", id="origin"),
    pytest.param(
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON_TYPE}\r\ncontent-length: 4194305\r\n\r\n".encode(),
        413,
        "content_too_large",
        id="content-length",
    ),
    pytest.param(
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{JSON_TYPE}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 5,
        413,
        "content_too_large",
        id="chunked",
    ),
    pytest.param(b"GET /v1/models HTTP/1.1\r\nhost: a/b?x=\r\n\r\n", 400, "invalid_host", id="bad-host"),
    pytest.param(b"GET /v1/models HTTP/1.1\r\nhost: rebound.example\r\n\r\n", 400, "invalid_host", id="other-host"),
]


@pytest.mark.parametrize(("data", "status", "code"), REQUESTS)
def test_bad_request_has_openais_shape(served: str, data: bytes, status: int, code: str | None) -> None:
    got_status, headers, error = talk(served, data)

    assert got_status == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    assert (status == 405) == ("allow" in headers)


async def test_unknown_field_is_named_and_harmless_ones_are_not(http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, json=chat(foo=1, user="me", metadata={}, store=True, **{"b\r\nad": 2}))

    assert answer.status_code == 200
    assert answer.headers["x-slimserve-ignored"] == "foo"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat(""), id="empty-content"),
        pytest.param(CHAT, chat("a\0b"), id="nul-in-content"),
        pytest.param(CHAT, chat([{"type": "text", "text": "hi"}]), id="parts"),  # type: ignore[arg-type]
        pytest.param(CHAT, chat(top_k=10**6), id="top-k-above-vocabulary"),
        pytest.param(CHAT, chat(logprobs=True, top_logprobs=20), id="top-20"),
        pytest.param(COMPLETIONS, completion("", max_tokens=2), id="empty-prompt"),
        pytest.param(COMPLETIONS, completion([5] * 4095, max_tokens=1), id="one-token-left"),
        pytest.param(COMPLETIONS, completion([5] * 4090, max_tokens=None), id="default-fits-what-is-left"),
    ],
)
async def test_good_input_at_the_edge_is_answered(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await http.post(path, json=body)

    assert answer.status_code == 200, answer.text
