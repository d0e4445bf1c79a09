"""HTTP as bytes on a socket: what clients send that no client library would."""

import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

KEY = "secret-of-the-corpus"
TIMEOUT_S = 300
# What an answer must never hold: paths of the machine, frames of a traceback, addresses of objects.
_LEAK = re.compile(r"Traceback|site-packages|File \"|/tmp/|/work/|/home/|0x[0-9a-f]{6,}|workers\.|app\.")


@dataclass(frozen=True)
class Answer:
    """One answer. is_closed: the server ended the connection behind it."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_closed: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, checked for its shape and for what must not be in it."""
        content = self.json
        assert content.keys() == {"error"}, content
        error: dict[str, Any] = content["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(self.body) < 4000
        leak = _LEAK.search(self.body.decode())
        assert leak is None, leak
        assert self.headers["x-request-id"].startswith("req-")
        return error


class Connection:
    """One TCP connection to the server under test."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.sock = socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)
        self._received = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        # it may be refused before all of it was sent; then the answer is there to be read
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def read_answer(self, *, is_head: bool = False) -> Answer:
        """The next answer on this connection."""
        while b"\r\n\r\n" not in self._received:
            assert self._more(), f"the connection ended inside a head: {self._received!r}"
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(status_line.split()[1])
        body = b"" if is_head or status < 200 else self._read_body(headers)
        return Answer(status, headers, body)

    def is_closed_by_server(self) -> bool:
        """Wait for the end of the connection; nothing else may come."""
        return not self._received and not self._more()

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return self._read_chunks()
        if "content-length" in headers:
            return self._take(int(headers["content-length"]))
        while self._more():
            pass
        return self._take(len(self._received))

    def _read_chunks(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self._received:
                assert self._more(), "the connection ended inside a chunked body"
            size, _, self._received = self._received.partition(b"\r\n")
            body += self._take(int(size, 16))
            self._take(2)
            if int(size, 16) == 0:
                return body

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            assert self._more(), "the connection ended inside a body"
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _more(self) -> bool:
        try:
            data = self.sock.recv(2**16)
        except ConnectionResetError:
            return False
        self._received += data
        return bool(data)


def exchange(url: str, data: bytes, *, waits_for_close: bool = False) -> Answer:
    """Send bytes on a connection of their own and read the answer."""
    with Connection(url) as connection:
        connection.send(data)
        answer = connection.read_answer()
        is_closed = connection.is_closed_by_server() if waits_for_close else False
    return Answer(answer.status, answer.headers, answer.body, is_closed)


def request(
    method: str, path: str, body: bytes = b"", *headers: str, key: str | None = KEY, content_type: str | None = None
) -> bytes:
    """A well-formed request; `headers` are added to the usual ones."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1"]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    if content_type is not None:
        lines.append(f"content-type: {content_type}")
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + body


def post(path: str, body: Any, *headers: str, key: str | None = KEY) -> bytes:
    """A JSON request; `body` is bytes that are sent as they are, or a value."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", path, data, *headers, key=key, content_type="application/json")
