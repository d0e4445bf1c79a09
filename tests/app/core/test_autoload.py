"""Requests for variants that are not loaded: one load for all, waits that end, and everything that can cross them."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, listening, running_app, running_server
from budget_servers import (
    budget_for_two,
    estimate_as,
    hang_at_load,
    load_echoes,
    measured_echo_bytes,
    states,
    until,
)

from app import embedded
from app.core.load_request import LoadRequest
from app.core.server import Server
from app.core.variants import VariantState
from app.errors import ApiError, ModelNotFound, Unavailable

LOADING, READY, REGISTERED = VariantState.LOADING, VariantState.READY, VariantState.REGISTERED
DIES_AT_ONCE = "nonsense"

pytestmark = pytest.mark.timeout(600)


def completion(model: str, max_tokens: int = 4) -> dict[str, object]:
    return {"model": model, "prompt": "The little dog", "max_tokens": max_tokens}


async def ask(http: httpx.AsyncClient, model: str, max_tokens: int = 4) -> httpx.Response:
    return await http.post("/v1/completions", json=completion(model, max_tokens))


async def wait_for(server: Server, variant_id: str) -> None:
    """A request that needs the variant for a moment."""
    async with server.autoload.serving(variant_id):
        pass


@pytest.fixture
async def known(server: Server) -> Server:
    """A server that knows `echo/a`; nothing is loaded."""
    server.catalog.add_echo("a")
    return server


@pytest.fixture
async def with_folder(server: Server, tmp_path: Path) -> Server:
    """A server that knows `mine/fp32`, whose load hangs."""
    folder = shutil.copytree(embedded.model_path(), tmp_path / "mine")
    base = await server.loader.register(LoadRequest(model=str(folder)), wait=True)
    assert base is not None
    await server.catalog.cast(base, "fp32")
    hang_at_load(server)
    return server


async def test_requests_for_an_unloaded_variant_are_one_load_and_all_are_answered(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path)) as (app, http):
        server: Server = app.state.server
        server.catalog.add_echo("a")

        answers = await asyncio.gather(*(ask(http, "echo/a") for _ in range(10)))
        metrics = (await http.get("/metrics")).text

        assert [answer.status_code for answer in answers] == [200] * 10
        assert 'slimserve_autoloads_total{outcome="ready",variant="echo/a"} 1.0' in metrics
        assert (await ask(http, "echo/nobody")).status_code == 404
        await http.post("/v1/unload", json={"model": "echo/a"})
        assert (await http.get("/v1/models/echo/a")).json()["status"]["value"] == "unloaded"
        streamed = await http.post("/v1/completions", json={**completion("echo/a"), "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")


async def test_without_autoload_the_answer_says_how_to_load_it(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path, autoload=False)) as (app, http):
        app.state.server.catalog.add_echo("a")

        answer = await ask(http, "echo/a")

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_loaded")
        assert "POST /v1/load" in answer.json()["error"]["message"]
        assert states(app.state.server) == {"a": REGISTERED}


async def test_wait_that_is_over_says_when_to_come_back_and_the_load_goes_on(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path, autoload_wait_s=0)) as (app, http):
        server: Server = app.state.server
        server.catalog.add_echo("a")

        answer = await ask(http, "echo/a")

        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        await until(lambda: states(server) == {"a": READY})
        assert (await ask(http, "echo/a")).status_code == 200


async def test_load_that_fails_tells_everyone_why_and_is_not_tried_by_the_next_request(known: Server) -> None:
    known.supervisor.watch = replace(known.supervisor.watch, faults=DIES_AT_ONCE)

    errors = await asyncio.gather(*(wait_for(known, "echo/a") for _ in range(3)), return_exceptions=True)
    known.supervisor.watch = replace(known.supervisor.watch, faults="")
    with pytest.raises(ApiError, match=r"has failed: .* POST /v1/load"):
        await wait_for(known, "echo/a")

    assert {(error.status, error.code) for error in errors if isinstance(error, ApiError)} == {(500, "worker_crashed")}
    assert all("exited with status 1" in str(error) for error in errors)
    failed = {"variant": "echo/a", "outcome": "failed"}
    assert known.metrics.registry.get_sample_value("slimserve_autoloads_total", failed) == 1


async def test_unload_by_name_wins_over_requests_that_wait(known: Server) -> None:
    hang_at_load(known)
    waiting = asyncio.create_task(wait_for(known, "echo/a"))
    await until(lambda: states(known)["a"] is LOADING)

    await known.catalog.unload("echo/a", wait=True, force=False)

    with pytest.raises(Unavailable, match="was unloaded") as error:
        await waiting
    assert error.value.code == "model_unloading"
    assert states(known)["a"] is REGISTERED


async def test_unload_by_name_wins_over_a_load_that_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo_bytes = await measured_echo_bytes(tmp_path / "probe")
    estimate_as(echo_bytes, monkeypatch)
    async with running_server(budget_for_two(tmp_path / "data", echo_bytes)) as server:
        await load_echoes(server, "a", "b")
        server.catalog.add_echo("c")
        evicting = asyncio.create_task(wait_for(server, "echo/c"))
        await until(lambda: states(server)["a"] is VariantState.UNLOADING)
        await server.catalog.unload("echo/c", wait=True, force=False)
        with pytest.raises(Unavailable, match="was unloaded"):
            await evicting

        await load_echoes(server, "a")
        async with server.autoload.serving("echo/a"), server.autoload.serving("echo/b"):
            blocked = asyncio.create_task(wait_for(server, "echo/c"))
            await asyncio.sleep(0.1)
            await server.catalog.unload("echo/c", wait=True, force=False)
            with pytest.raises(Unavailable, match="was unloaded"):
                await blocked

        assert states(server) == {"a": READY, "b": READY, "c": REGISTERED}


async def test_delete_ends_the_wait_and_nothing_comes_back(with_folder: Server) -> None:
    waiting = asyncio.create_task(wait_for(with_folder, "mine/fp32"))
    await until(lambda: with_folder.catalog.resolve("mine/fp32").state is LOADING)

    await with_folder.catalog.delete("mine/fp32", force=True)

    with pytest.raises(Unavailable, match="was unloaded"):
        await waiting
    with pytest.raises(ModelNotFound):
        await with_folder.autoload.find("mine")


async def test_stop_of_the_server_ends_every_wait(known: Server) -> None:
    hang_at_load(known)
    waiting = asyncio.create_task(wait_for(known, "echo/a"))
    await until(lambda: states(known)["a"] is LOADING)

    known.begin_drain()

    with pytest.raises(Unavailable) as error:
        await waiting
    assert error.value.code == "draining"


async def test_client_that_leaves_ends_its_wait_and_not_the_load(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path)) as (app, _):
        server: Server = app.state.server
        life = server.catalog.add_echo("a").life
        async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=LOAD_TIMEOUT_S) as http:
            request = asyncio.create_task(ask(http, "echo/a"))
            await until(lambda: life.state is LOADING)
            request.cancel()

            await until(lambda: life.num_users == 0)
            await until(lambda: life.state is READY)


async def test_base_that_nobody_has_loaded_is_known_by_its_name(server: Server, tmp_path: Path) -> None:
    folder = shutil.copytree(embedded.model_path(), tmp_path / "mine")
    await server.loader.register(LoadRequest(model=str(folder)), wait=True)

    assert (await server.autoload.find("mine")).startswith("mine/")
    assert await server.autoload.find("slimstory") == server.catalog.resolve("slimstory").id


async def test_request_brings_a_variant_back_with_the_options_it_was_loaded_with(known: Server) -> None:
    await load_echoes(known, "a", max_model_len=64)
    entry = known.catalog.entry("echo/a")
    await asyncio.sleep(0.1)
    await known.loader.load(LoadRequest(model="echo/a", idle_unload_s=0.2), wait=False)
    await until(lambda: states(known)["a"] is REGISTERED)

    async with known.autoload.serving("echo/a") as served:
        assert served.info.max_model_len == 64

    await known.catalog.unload("echo/a", wait=True, force=False)
    assert entry.options is None, "an unload by name ends what was asked for"


async def test_fifty_requests_to_three_variants_with_room_for_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo_bytes = await measured_echo_bytes(tmp_path / "probe")
    estimate_as(echo_bytes, monkeypatch)
    most_loaded = 0
    async with running_app(budget_for_two(tmp_path / "data", echo_bytes)) as (app, http):
        server: Server = app.state.server
        for name in "abc":
            server.catalog.add_echo(name)

        async def watch() -> None:
            nonlocal most_loaded
            while True:
                changed = server.catalog.pulse.next
                loaded = sum(state is not REGISTERED for state in states(server).values())
                most_loaded = max(most_loaded, loaded)
                await changed.wait()

        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(ask(http, f"echo/{'abc'[number % 3]}", 20) for number in range(50)))
        watching.cancel()

        assert [answer.status_code for answer in answers] == [200] * 50
        assert most_loaded == 2
        evictions = [
            server.metrics.registry.get_sample_value("slimserve_evictions_total", {"variant": f"echo/{name}"}) or 0
            for name in "abc"
        ]
        assert sum(evictions) == 1, "one had to go, and none went twice"


async def test_request_without_room_waits_for_a_busy_variant_and_then_says_who_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo_bytes = await measured_echo_bytes(tmp_path / "probe")
    estimate_as(echo_bytes, monkeypatch)
    async with running_server(budget_for_two(tmp_path / "data", echo_bytes, autoload_wait_s=1)) as server:
        await load_echoes(server, "a", "b")
        server.catalog.add_echo("c")

        async with server.autoload.serving("echo/a"), server.autoload.serving("echo/b"):
            with pytest.raises(Unavailable, match="busy: 'echo/a', 'echo/b'") as error:
                await wait_for(server, "echo/c")
            waiting = asyncio.create_task(wait_for(server, "echo/c"))
            await asyncio.sleep(0)
        await asyncio.wait({waiting})
        # the one that goes may take longer to end than a request waits here
        await until(lambda: states(server)["c"] in (LOADING, READY))

        assert error.value.code == "model_loading"
        assert list(states(server).values()).count(REGISTERED) == 1
