"""Streams that fail on the worker's side after their first event: what the reader gets, and what the metrics say."""

import json
from pathlib import Path

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, running_app
from sse_reading import completion, events_of

# Two loads of a worker, one of them after a kill.
pytestmark = pytest.mark.timeout(2 * LOAD_TIMEOUT_S)


async def sample(client: httpx.AsyncClient, name: str) -> dict[str, float]:
    """The samples of one metric by their labels, as exposed."""
    lines = (await client.get("/metrics")).text.splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith(f"slimserve_{name}{{"))
    return {labels.partition("{")[2].removesuffix("}"): float(value) for labels, _, value in found}


async def counted(client: httpx.AsyncClient, name: str) -> dict[str, float]:
    """The samples of a counter, but for those that nothing has happened to."""
    return {labels: value for labels, value in (await sample(client, name)).items() if value}


@pytest.mark.parametrize(
    ("fault", "code", "num_nan"),
    [("worker.step:kill@n=12", "worker_crashed", {}), ("worker.logits:nan@n=12", "nonfinite_logits", {"echo/echo": 1})],
    ids=["killed", "nan"],
)
async def test_failure_after_the_first_event_is_an_error_event_and_counted_as_one(
    tmp_path: Path, fault: str, code: str, num_nan: dict[str, int]
) -> None:
    async with running_app(echo_settings(tmp_path / "data", faults=fault)) as (_, client):
        await client.post("/v1/load", json={"model": "echo/echo", "wait": True})

        body = completion(model="echo/echo", max_tokens=40, stream=True)
        answer = await client.post("/v1/completions", json=body)

        *chunks, last = events_of(answer.text)
        assert answer.status_code == 200
        assert len(chunks) >= 5
        assert json.loads(last)["error"]["code"] == code
        requests = await counted(client, "requests_total")
        assert requests == {'finish_reason="error",status="error",variant="echo/echo"': 1}
        assert await counted(client, "nan_logits_total") == {f'variant="{name}"': n for name, n in num_nan.items()}
        assert await counted(client, "time_to_first_token_seconds_count") == {}


async def test_dead_worker_leaves_no_gauge_behind(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path / "data", faults="worker.step:kill@n=12")) as (app, client):
        await client.post("/v1/load", json={"model": "echo/echo", "wait": True})
        await client.post("/v1/completions", json=completion(model="echo/echo", max_tokens=40, stream=True))

        for when, num_ages in (("dead", 0), ("restarted", 1)):
            if when == "restarted":
                await app.state.server.catalog.wait_ready("echo/echo", LOAD_TIMEOUT_S)

            assert await sample(client, "requests_running") == {'variant="echo/echo"': 0}, when
            assert await sample(client, "kv_cache_usage_ratio") == {'variant="echo/echo"': 0}, when
            assert len(await sample(client, "worker_last_step_age_seconds")) == num_ages, when
            assert (await client.get("/v1/variants/echo/echo")).json()["running"] == 0, when


async def test_failure_before_the_first_event_keeps_its_status(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path / "data", faults="worker.logits:nan@n=1")) as (_, client):
        await client.post("/v1/load", json={"model": "echo/echo", "wait": True})

        answer = await client.post("/v1/completions", json=completion(model="echo/echo", stream=True))

        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "nonfinite_logits")
        assert await sample(client, "nan_logits_total") == {'variant="echo/echo"': 1}
