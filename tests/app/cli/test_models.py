"""What load, unload and list say."""

from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.client import Client
from app.cli.root import app


@pytest.mark.parametrize(
    ("state", "said"),
    [("registered", "a/int8: unloaded"), ("quarantined", "a/int8: quarantined (too far from its base)")],
)
def test_unload_says_what_was_done(state: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "too far from its base" if state == "quarantined" else None
    answer: dict[str, Any] = {"id": "a/int8", "state": state, "reason": reason}
    monkeypatch.setattr(Client, "post", lambda self, path, body: answer)

    result = CliRunner().invoke(app, ["unload", "a/int8"])

    assert (result.exit_code, result.stdout.strip()) == (0, said)
