"""What the followers of a job are told, over a real socket: each module, its errors, time and memory."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, listening, running_app

# Processes that import torch one after another, on a machine that may be busy.
pytestmark = pytest.mark.timeout(600)
CALIBRATION = {"num_samples": 4, "sequence_length": 64}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_app(echo_settings(tmp_path / "data")) as (app, _),
        listening(app) as url,
        httpx.AsyncClient(base_url=url, timeout=LOAD_TIMEOUT_S, trust_env=False) as client,
    ):
        yield client


async def followed(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[Any], Any]:
    """The finished job, all its progress, and the progress that the job told at the first of it."""
    job = (await http.post(path, json=body)).json()
    progress, first = [], None
    async with http.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        kind = ""
        async for line in stream.aiter_lines():
            name, _, value = line.partition(": ")
            kind = value if name == "event" else kind
            if name == "data" and kind == "progress":
                progress.append(json.loads(value))
                first = first or (await http.get(f"/v1/jobs/{job['id']}")).json()["progress"]
    return (await http.get(f"/v1/jobs/{job['id']}")).json(), progress, first


def assert_common(progress: list[Any]) -> None:
    """What holds for every kind of job."""
    assert all(one["rss_bytes"] > 2**20 for one in progress if one["phase"] != "loading")
    ratios = [one["ratio"] for one in progress]
    assert ratios == sorted(ratios)
    assert 0 <= ratios[0] < ratios[-1] <= 1


async def test_every_module_of_a_calibrated_job_has_an_event_with_its_errors(http: httpx.AsyncClient) -> None:
    body = {"model": "slimstory", "method": "gptq-int4-g32", "calibration": CALIBRATION}

    job, progress, first = await followed(http, "/v1/quantize", body)

    assert job["state"] == "succeeded", job["error"]
    assert_common(progress)
    assert first.keys() == progress[0].keys()
    made = [one for one in progress if one["error_after"] is not None]
    num_layers = made[0]["num_layers"]
    assert len({one["module"] for one in made}) == len(made) == job["result"]["num_compressed"] == 7 * num_layers
    assert [one["layer"] for one in made] == [index for index in range(num_layers) for _ in range(7)]
    assert all(f"layers.{one['layer']}." in one["module"] for one in made)
    assert all(one["phase"] == "compressing" for one in made)
    # Never worse than plain rounding on the text that was seen, and better as a whole.
    assert all(0 < one["error_after"] <= one["error_before"] < 1 for one in made)
    assert sum(one["error_after"] for one in made) < 0.95 * sum(one["error_before"] for one in made)
    assert all(one["seconds"] > 0 and one["eta_s"] >= 0 for one in made)
    assert made[-1]["eta_s"] == 0
    phases = list(dict.fromkeys(one["phase"] for one in progress))
    assert phases == ["compressing", "writing", "hashing", "reading base", "reading variant"]


async def test_plain_rounding_has_nothing_to_compare_with_and_a_measurement_no_modules(http: httpx.AsyncClient) -> None:
    job, progress, _ = await followed(http, "/v1/quantize", {"model": "slimstory", "method": "rtn-int8-channel"})
    measured, scoring, _ = await followed(
        http, "/v1/measure", {"model": job["variant"], "max_tokens": 300, "streams": [1]}
    )

    made = [one for one in progress if one["error_after"] is not None]
    assert len(made) == job["result"]["num_compressed"]
    assert all(one["error_before"] is None and 0 < one["error_after"] < 0.02 for one in made)
    assert {one["layer"] for one in made} == set(range(made[0]["num_layers"]))
    assert_common(progress)
    assert measured["state"] == "succeeded"
    assert_common(scoring)
    assert all(one["module"] is None and one["layer"] is None for one in scoring)
    phases = list(dict.fromkeys(one["phase"] for one in scoring))
    assert phases == ["reading base", "scoring base", "reading variant", "scoring variant", "loading", "timing"]
