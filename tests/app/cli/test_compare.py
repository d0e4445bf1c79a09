"""What compare and recommend print."""

from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.client import Client
from app.cli.compare import recommendation_lines
from app.cli.root import app

NAME = "slimstory/auto-4.75bits-g32-with-a-long-name"


def row(variant: str) -> dict[str, Any]:
    level = {"tokens_per_s": 1234.5, "ttft_ms": 4.62, "tpot_ms": 1.42}
    return {
        "variant": variant,
        "is_pareto": True,
        "weight_bytes": 1_583_872,
        "bits_per_weight": 16.0,
        "peak_bytes": 506_716_160,
        "kl_mean": 0.00142,
        "top1_agreement": 0.983,
        "perplexity": 4.585,
        "levels": [{"streams": streams, **level} for streams in (1, 4, 16, 64)],
        "load_s": 1.9,
        "neighbours": [],
        "missing": ["quality"],
        "measured_otherwise": [],
    }


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_table_is_never_cut_and_keeps_its_stars(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"streams": 1, "data": [row(NAME)]}
    monkeypatch.setattr(Client, "get", lambda self, path: found)

    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["compare", "slimstory"])

    heading, shown = result.stdout.splitlines()
    assert heading.split()[-1] == "load"
    assert shown.split() == [
        *("*", NAME, "1.6", "MB", "16.00", "506.7", "MB", "0.00142", "98.3", "%", "4.585"),
        *("1234.5", "1234.5", "1234.5", "1234.5", "4.62", "ms", "1.42", "ms", "1.9", "s"),
    ]


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_form_that_answers_do_not_have_is_refused(form: str) -> None:
    result = CliRunner().invoke(app, ["compare", "slimstory", "--prompt", "a", "--format", form])

    assert result.exit_code == 1
    assert f"answers to --prompt are no {form}" in result.stderr


def test_variant_that_was_measured_otherwise_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    otherwise = {**row("a/b"), "perplexity": None, "measured_otherwise": ["quality"]}
    monkeypatch.setattr(Client, "get", lambda self, path: {"streams": 1, "data": [otherwise]})

    result = CliRunner().invoke(app, ["compare", "a"])

    assert "a/b: quality left out, measured in other circumstances than most variants" in result.stderr


@pytest.mark.parametrize(
    ("streams", "missing", "command"),
    [
        (8, "tokens_per_s at 8 streams", "slimserve measure a/b --streams 8"),
        (1, "ttft_ms at 1 stream", "slimserve measure a/b"),
        (8, "kl_mean", "slimserve measure a/b"),
    ],
)
def test_command_for_what_is_unknown_measures_just_that(streams: int, missing: str, command: str) -> None:
    found = {
        "base": "a",
        "constraints": {"streams": streams},
        "ranked": [],
        "rejected": [],
        "unmeasured": [{"variant": "a/b", "missing": [missing]}],
        "suggestions": [],
    }

    assert f"unknown: a/b has no {missing}; run `{command}`" in recommendation_lines(found)
