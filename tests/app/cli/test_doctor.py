"""What doctor says of a port that is taken."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from app.cli import doctor
from app.cli.root import app

OURS = {"x-request-id": "req-0123456789abcdef01234567"}


class Server(BaseHTTPRequestHandler):
    """Answers every GET with the same JSON, as `/healthz` of many servers does."""

    answer_headers: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        body = b'{"status":"ok"}'
        self.send_response(200)
        for name, value in {"content-length": str(len(body)), **self.answer_headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("headers", "exit_code", "line"),
    [({}, 1, "BAD  127.0.0.1:{port} cannot be used"), (OURS, 0, "ok   127.0.0.1:{port} is used by a slimserve server")],
    ids=["foreign", "ours"],
)
def test_port_of_our_own_server_is_nothing_wrong(
    port: int,
    headers: dict[str, str],
    exit_code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Server, "answer_headers", headers)
    monkeypatch.setattr(doctor, "_devices", lambda: [])

    result = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path)], env={"SLIMSERVE_PORT": str(port)})

    assert line.format(port=port) in result.stdout
    assert result.exit_code == exit_code, result.output
