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


@pytest.mark.parametrize(
    ("changes", "exit_code", "said"),
    [
        ({}, 0, "3.0 GB needed, 4.0 GB free on cpu: fits"),
        ({"evicts": ["b/int8", "c/int8"]}, 0, "fits after unloading b/int8, c/int8"),
        ({"free_bytes": None, "device": "cuda:0"}, 0, "what the worker finds free on cuda:0: fits"),
        ({"fits": False, "reason": "too large"}, 1, "does not fit"),
    ],
    ids=["fits", "evicts", "unknown", "does-not-fit"],
)
def test_plan_says_whether_it_fits(
    changes: dict[str, Any], exit_code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"id": "a/int8", "state": "registered", "needed_bytes": 3_000_000_000, "source": "measured"}
    answer = {"fits": True, "reason": None, "device": "cpu", "needed_bytes": 3_000_000_000, "models": [model]}
    monkeypatch.setattr(Client, "post", lambda *_: {**answer, "free_bytes": 4_000_000_000, "evicts": [], **changes})

    result = CliRunner().invoke(app, ["plan", "a/int8"])

    assert result.exit_code == exit_code
    assert "measured" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(said)
