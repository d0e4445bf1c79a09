"""How a step of a job reads on the command line."""

from typing import Any

import pytest

from app.cli.jobs import step

OLD: dict[str, Any] = {"phase": "compressing", "unit": "a.0.b", "done": 1, "total": 2, "eta_s": 3661.4, "error": 0.1}
COMMON = {"phase": "compressing", "done": 1, "total": 2, "eta_s": None}
MODULE = {"layer": 1, "num_layers": 5, "module": "a.1.b", "error_before": 0.5, "error_after": 0.25}


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({**COMMON, **MODULE}, "compressing layer 2 of 5, a.1.b, error 5.00e-01 to 2.50e-01"),
        (
            {**COMMON, **MODULE, "error_before": None, "eta_s": 59.6},
            "compressing layer 2 of 5, a.1.b, error 2.50e-01, 0:01:00 left",
        ),
        ({**COMMON, "layer": None, "module": None, "error_after": None}, "compressing"),
        (OLD, "compressing 1:01:01 left"),
    ],
    ids=["calibrated", "rounded", "no-module", "stored-by-0.1.0"],
)
def test_step_tells_what_is_known(progress: dict[str, Any], text: str) -> None:
    assert step(progress) == text
