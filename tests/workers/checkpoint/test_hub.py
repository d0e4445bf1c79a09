"""Fetching from a hub: a small server on this machine that speaks the hub's protocol stands in for it."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workers.checkpoint.hub import download
from workers.protocol.errors import WorkerError, WorkerErrorCode

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickle",
    "modeling_small.py": b"raise SystemExit",
    "original/model.safetensors": b"copy",
}


class HubHandler(BaseHTTPRequestHandler):
    """Two routes: what a model holds, and one of its files."""

    protocol_version = "HTTP/1.1"
    files = FILES

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/small"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            return self.answer(200, json.dumps({"id": "someone/small", "sha": COMMIT, "siblings": siblings}).encode())
        prefix = f"/someone/small/resolve/{COMMIT}/"
        if self.path.startswith(prefix) and (name := self.path.removeprefix(prefix)) in self.files:
            return self.answer(200, self.files[name])
        return self.answer(404, b"{}")

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest shows what matters."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_weights_configs_tokenizer_and_template_are_fetched(hub: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    folder = download("someone/small", None, tmp_path / "m", lambda *at: seen.append(at), endpoint=hub)

    fetched = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assert fetched.keys() == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert all(FILES[name] == content for name, content in fetched.items())
    total = sum(map(len, fetched.values()))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_model_without_safetensors_is_refused_before_anything_is_fetched(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HubHandler, "files", {"config.json": b"{}", "pytorch_model.bin": b"x"})

    with pytest.raises(WorkerError, match="safetensors only") as caught:
        download("someone/small", None, tmp_path / "m", lambda *at: None, endpoint=hub)

    assert caught.value.code is WorkerErrorCode.UNSAFE_CHECKPOINT
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("hub_id", ["someone/other", "not a name", "../../etc", "a/b/c"])
def test_unknown_model_is_not_found(hub: str, tmp_path: Path, hub_id: str) -> None:
    with pytest.raises(WorkerError) as caught:
        download(hub_id, None, tmp_path / "m", lambda *at: None, endpoint=hub)

    assert caught.value.code is WorkerErrorCode.BASE_NOT_FOUND


def test_refused_connection_is_unreachable_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"

        with pytest.raises(WorkerError, match="load its folder") as caught:
            download("someone/small", None, tmp_path / "m", lambda *at: None, endpoint=endpoint)

    assert caught.value.code is WorkerErrorCode.HUB_UNREACHABLE


def test_cancel_during_a_download_passes_through(hub: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise WorkerError(WorkerErrorCode.CANCELLED, "the job was cancelled")

    with pytest.raises(WorkerError) as caught:
        download("someone/small", None, tmp_path / "m", stop, endpoint=hub)

    assert caught.value.code is WorkerErrorCode.CANCELLED
