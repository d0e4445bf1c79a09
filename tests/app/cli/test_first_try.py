"""What a new user is told to type, and the sampling that a small model needs to speak in words."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import chat
from app.cli.curl import curl_lines
from app.cli.demo import closing_lines
from app.cli.invocation import own_command
from app.cli.root import app
from app.cli.server_process import ServerProcess


def test_curl_line_samples_as_chat_does() -> None:
    words = shlex.split(curl_lines("http://127.0.0.1:8080", "slimstory/bf16")[0])

    body = json.loads(words[words.index("-d") + 1])
    assert (body["temperature"], body["top_p"], body["stream"]) == (0.7, 0.9, True)


def test_curl_lines_send_a_key_where_one_is_asked_for() -> None:
    lines = curl_lines("http://127.0.0.1:8080", "slimstory/bf16", has_keys=True)

    assert all('-H "authorization: Bearer $SLIMSERVE_API_KEY"' in line for line in lines)


@pytest.mark.parametrize(("args", "top_p"), [([], 0.9), (["--top-p", "0.5"], 0.5)], ids=["default", "given"])
def test_chat_leaves_out_the_unlikely_tail(args: list[str], top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(chat, "answer", lambda client, options, messages, *, stats: asked.append(options))

    result = CliRunner().invoke(app, ["chat", "hi", "--model", "a/int8", *args])

    assert result.exit_code == 0, result.output
    assert [(options["temperature"], options["top_p"]) for options in asked] == [(0.7, top_p)]


@pytest.mark.parametrize(
    ("argv0", "expected"),
    [
        (".venv/bin/slimserve", ".venv/bin/slimserve"),
        ("/a folder/slimserve", "'/a folder/slimserve'"),
        (str(Path("app/__main__.py").resolve()), f"{shlex.quote(sys.executable)} -m app"),
    ],
    ids=["not-on-the-path", "quoted", "module"],
)
def test_command_is_told_as_it_was_started(argv0: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [argv0, "demo"])
    monkeypatch.setenv("PATH", "/nowhere")

    assert own_command() == expected


def test_command_on_the_path_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "slimserve"
    shutil.copy(sys.executable, script)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))

    assert own_command() == "slimserve"


def test_demo_ends_with_commands_that_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/slimserve", "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    server = ServerProcess(pid=1, created_s=0, url="http://127.0.0.1:8081")

    lines = closing_lines(server, "slimstory/int8", Path("a folder"))

    text = "\n".join(lines)
    assert ".venv/bin/slimserve --url http://127.0.0.1:8081 chat" in lines
    assert ".venv/bin/slimserve demo --stop --run-dir 'a folder'" in text
    assert text.count("slimserve ") == text.count(".venv/bin/slimserve ")
