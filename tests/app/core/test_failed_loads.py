"""Loads that fail before a worker starts: what the client is told, and what is left behind in the lists."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from app_servers import echo_settings, running_app

from app.api.models import STATUS
from app.core import fit
from app.core.bases import Bases
from app.core.variants import VariantState
from app.errors import ApiError, from_worker
from workers.protocol.errors import WorkerErrorCode

HUB_ID = "nobody/nothing"


@pytest.fixture
def unreachable_hub(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every inspection ends as one does whose download found no network."""

    async def fail(self: Bases, *args: Any) -> None:
        raise from_worker(WorkerErrorCode.HUB_UNREACHABLE, "the hub is not reachable from here")

    monkeypatch.setattr(Bases, "_inspect", fail)


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client over ASGI; the embedded base is registered."""
    async with running_app(echo_settings(tmp_path / "data")) as (_, client):
        yield client


async def ids(http: httpx.AsyncClient, path: str) -> list[str]:
    return [item["id"] for item in (await http.get(path)).json()["data"]]


@pytest.mark.usefixtures("unreachable_hub")
async def test_unreachable_hub_is_503_and_says_when_to_try_again(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/load", json={"model": HUB_ID})

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "hub_unreachable")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.usefixtures("unreachable_hub")
async def test_failed_registration_is_a_variant_with_its_reason_and_no_model(http: httpx.AsyncClient) -> None:
    await http.post("/v1/load", json={"model": HUB_ID})

    assert "nothing/auto" in await ids(http, "/v1/variants")
    assert "not reachable" in (await http.get("/v1/variants/nothing/auto")).json()["reason"]
    assert "nothing/auto" not in await ids(http, "/v1/models")
    for path, body in (
        ("/v1/models/nothing/auto", None),
        ("/v1/completions", {"model": "nothing/auto", "prompt": "a"}),
    ):
        answer = await (http.get(path) if body is None else http.post(path, json=body))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    # nor is it suggested to anybody
    assert "nothing/auto" not in (await http.post("/v1/load", json={"model": "nothin"})).text
    assert (await http.delete("/v1/variants/nothing/auto")).status_code == 200
    assert "nothing/auto" not in await ids(http, "/v1/variants")


async def test_refused_load_takes_the_registration_that_it_made_back(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await ids(http, "/v1/variants")
    other = "bf16" if before == ["slimstory/fp32"] else "fp32"
    monkeypatch.setattr(fit, "available_bytes", lambda: 2**20)

    new = await http.post("/v1/load", json={"model": "slimstory", "dtype": other})
    known = await http.post("/v1/load", json={"model": "slimstory"})

    assert (new.status_code, known.status_code) == (507, 507)
    assert await ids(http, "/v1/variants") == before
    assert (await http.get(f"/v1/variants/slimstory/{other}")).status_code == 404


def test_every_state_has_a_word_for_models() -> None:
    assert set(STATUS) == set(VariantState)


def test_every_code_of_workers_becomes_an_http_error() -> None:
    errors = {code: from_worker(code, "why") for code in WorkerErrorCode}

    assert all(isinstance(error, ApiError) for error in errors.values())
    assert errors[WorkerErrorCode.HUB_UNREACHABLE].headers == {"retry-after": "30"}
    assert errors[WorkerErrorCode.NO_VALID_TOKEN].status == 400
