"""What stays in memory: eviction under a budget, pins, idle variants, plans, and what was measured after a restart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from app_servers import echo_settings, running_server
from budget_servers import budget_for_two, estimate_as, load_echoes, measured_echo_bytes, states, until

from app.core.load_request import LoadRequest
from app.core.plan import plan_loads
from app.core.server import Server
from app.core.variants import VariantState
from app.errors import DoesNotFit, NoRoomNow
from app.schemas.load import PlanObject

READY, REGISTERED = VariantState.READY, VariantState.REGISTERED

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def for_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server with room for two stand-ins, of which `a` and then `b` are loaded."""
    echo_bytes = await measured_echo_bytes(tmp_path / "probe")
    estimate_as(echo_bytes, monkeypatch)
    async with running_server(budget_for_two(tmp_path / "data", echo_bytes)) as server:
        await load_echoes(server, "a", "b")
        yield server


def sample(server: Server, name: str) -> float:
    return server.metrics.registry.get_sample_value(name, {"variant": "echo/a"}) or 0.0


def plan(server: Server, *models: str) -> PlanObject:
    return plan_loads([LoadRequest(model=model) for model in models], server.catalog, server.residency)


async def test_least_recently_used_idle_variant_goes_and_its_process_has_ended(for_two: Server) -> None:
    first = for_two.catalog.acquire("echo/a").worker

    await load_echoes(for_two, "c")

    assert first.is_gone
    assert states(for_two) == {"a": REGISTERED, "b": READY, "c": READY}
    assert sample(for_two, "slimserve_evictions_total") == 1
    assert for_two.loader.unready() == {}, "what was evicted does not take the server out of service"


async def test_use_makes_a_variant_the_last_to_go(for_two: Server) -> None:
    async with for_two.autoload.serving("echo/a"):
        pass

    await load_echoes(for_two, "c")

    assert states(for_two) == {"a": READY, "b": REGISTERED, "c": READY}


async def test_load_that_must_not_evict_is_refused_with_the_way_out(for_two: Server) -> None:
    with pytest.raises(DoesNotFit, match='"evict": true'):
        await load_echoes(for_two, "c", evict=False)

    assert states(for_two) == {"a": READY, "b": READY, "c": REGISTERED}


async def test_busy_and_pinned_variants_stay_and_the_refusal_names_them(for_two: Server) -> None:
    await load_echoes(for_two, "b", pin=True)

    async with for_two.autoload.serving("echo/a"):
        with pytest.raises(NoRoomNow, match="busy: 'echo/a'; pinned: 'echo/b'"):
            await load_echoes(for_two, "c")
        assert states(for_two)["a"] is READY
    await load_echoes(for_two, "c")

    assert states(for_two) == {"a": REGISTERED, "b": READY, "c": READY}
    assert for_two.catalog.resolve("echo/b").is_pinned


async def test_load_of_a_variant_that_is_being_evicted_waits_and_brings_it_back(for_two: Server) -> None:
    other = asyncio.create_task(for_two.loader.load(LoadRequest(model="echo/c"), wait=True))
    await until(lambda: states(for_two)["a"] is VariantState.UNLOADING)

    back = await for_two.loader.load(LoadRequest(model="echo/a"), wait=False)

    await other
    assert back.state in (VariantState.LOADING, READY)
    assert states(for_two)["b"] is REGISTERED, "the idle one made room, and not the one that had just come"


async def test_plan_says_what_a_load_would_do_and_does_nothing(for_two: Server) -> None:
    before = states(for_two)
    for_two.catalog.add_echo("c")
    for_two.catalog.add_echo("d")

    one, loaded, all_of_them = plan(for_two, "echo/c"), plan(for_two, "echo/a"), plan(for_two, "echo/c", "echo/a")
    too_many = plan(for_two, "echo/a", "echo/c", "echo/d")

    assert (one.fits, one.evicts, one.models[0].source) == (True, ["echo/a"], "estimated")
    assert (loaded.fits, loaded.evicts, loaded.needed_bytes) == (True, [], 0)
    assert (all_of_them.fits, all_of_them.evicts) == (True, ["echo/b"])
    assert (too_many.fits, too_many.evicts) == (False, [])
    assert too_many.reason is not None
    assert "free" in too_many.reason
    assert states(for_two) == {**before, "c": REGISTERED, "d": REGISTERED}


async def test_plan_of_what_was_loaded_before_is_what_was_measured(for_two: Server) -> None:
    measured = for_two.catalog.resolve("echo/a").process_bytes
    await until(lambda: for_two.catalog.resolve("echo/a").measured_bytes is not None)
    await for_two.catalog.unload("echo/a", wait=True, force=False)

    (planned,) = plan(for_two, "echo/a").models

    assert (planned.source, planned.needed_bytes) == ("measured", measured)


async def test_idle_variant_is_unloaded_and_those_with_other_orders_stay(tmp_path: Path) -> None:
    async with running_server(echo_settings(tmp_path, idle_unload_s=0.3)) as server:
        await load_echoes(server, "stays", idle_unload_s=0)
        await load_echoes(server, "pinned", pin=True)
        await load_echoes(server, "a")
        async with server.autoload.serving("echo/a"):
            await asyncio.sleep(0.6)
            assert states(server)["a"] is READY, "it is busy"

        await until(lambda: states(server)["a"] is REGISTERED)

        assert states(server) == {"stays": READY, "pinned": READY, "a": REGISTERED}
        assert sample(server, "slimserve_idle_unloads_total") == 1
        async with server.autoload.serving("echo/a") as served:
            assert served.worker.is_ready, "a request brings it back"


async def test_what_was_measured_survives_a_restart_and_goes_with_the_variant(tmp_path: Path) -> None:
    settings = echo_settings(tmp_path)
    async with running_server(settings) as first:
        loaded = await first.loader.load(LoadRequest(model="slimstory", kv_cache_bytes=2**22), wait=True)
        await until(lambda: first.catalog.resolve("slimstory").measured_bytes is not None)

    async with running_server(settings) as second:
        (again,) = plan_loads(
            [LoadRequest(model="slimstory", kv_cache_bytes=2**22)], second.catalog, second.residency
        ).models
        (other,) = plan(second, "slimstory").models

    assert loaded.process_bytes is not None
    assert (again.source, other.source) == ("measured", "estimated"), "other options need other memory"
    assert again.needed_bytes >= loaded.process_bytes
