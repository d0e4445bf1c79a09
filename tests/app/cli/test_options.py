"""What several commands take."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.client import Client
from app.cli.root import app


@pytest.mark.parametrize(
    "command", [["measure", "a", "--text"], ["quantize", "a", "--calibration"]], ids=["measure", "quantize"]
)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"ab\xff"), "is no text in UTF-8: byte 2"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: None, "cannot be read: No such file or directory"),
    ],
    ids=["bytes", "folder", "nothing"],
)
def test_file_that_is_no_text_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], make: object, said: str
) -> None:
    monkeypatch.setattr(Client, "get", lambda self, path: {"data": []})
    path = tmp_path / "text"
    assert callable(make)
    make(path)

    result = CliRunner().invoke(app, [*command, str(path)])

    assert result.exit_code == 1
    assert f"{path} {said}" in result.stderr
