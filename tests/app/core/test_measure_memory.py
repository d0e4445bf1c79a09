"""The worker that a measurement starts counts as memory: it gets room as a load does, and others see it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from app_servers import running_server
from budget_servers import budget_for_two, estimate_as, load_echoes, measured_echo_bytes, states, until

from app.core.load_request import LoadRequest
from app.core.measurement import resolve_measure
from app.core.plan import plan_loads
from app.core.server import Server
from app.core.variants import VariantState
from app.schemas.jobs import JobObject, MeasureBody

READY, REGISTERED = VariantState.READY, VariantState.REGISTERED

pytestmark = pytest.mark.timeout(600)


@asynccontextmanager
async def for_two(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> AsyncIterator[Server]:
    """A server with room for two workers, of which `a` and then `b` are loaded.

    The embedded model's is estimated at 1.1 of a stand-in's and holds 1.76, after a minute of timing 1.79. With the
    estimate of one more that is to fit; three stand-ins at 3.1 are not.
    """
    echo_bytes = await measured_echo_bytes(folder / "probe")
    estimate_as(echo_bytes, monkeypatch)
    budget = {"memory_bytes": int(3 * echo_bytes)}
    async with running_server(budget_for_two(folder / "data", echo_bytes, **budget, **changes)) as server:
        await load_echoes(server, "a", "b")
        yield server


async def measurement(server: Server, new_tokens: int) -> JobObject:
    """A measurement of the embedded model, which is not loaded."""
    body = MeasureBody(model="slimstory", quality=False, streams=[1], prompt_tokens=8, new_tokens=new_tokens)
    return await server.jobs.submit(resolve_measure(body, server.catalog, server.settings), None)


async def ended(server: Server, job_id: str) -> JobObject:
    _ = [event async for event in server.jobs.events(job_id, 0, ping_s=10)]
    return await server.jobs.get(job_id)


async def phase(server: Server, job_id: str) -> str | None:
    job = await server.jobs.get(job_id)
    assert job.finished is None, job.error
    return job.progress and job.progress.phase


async def test_it_evicts_the_least_recently_used_and_is_counted_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with for_two(tmp_path, monkeypatch) as server:
        server.catalog.add_echo("c")
        job = await measurement(server, 500)
        while await phase(server, job.id) != "timing":
            await asyncio.sleep(0.02)

        guest, *others = sorted(server.residency.room("cpu").residents, key=lambda one: one.variant_id, reverse=True)
        plan = plan_loads([LoadRequest(model="echo/c")], server.catalog, server.residency)

        assert states(server) == {"a": REGISTERED, "b": READY, "c": REGISTERED}
        assert [one.variant_id for one in others] == ["echo/b"]
        assert guest.variant_id == f"slimstory/{server.catalog.resolve('slimstory').method} for job {job.id}"
        assert guest.held_bytes > guest.returned_bytes > 0, "measured: it shares the pages of its libraries"
        assert plan.free_bytes is not None
        assert plan.budget_bytes is not None
        assert plan.free_bytes <= plan.budget_bytes - guest.held_bytes - others[0].held_bytes
        assert (plan.fits, plan.evicts, plan.busy) == (True, ["echo/b"], [guest.variant_id])

        await server.jobs.cancel(job.id)

        assert [one.variant_id for one in server.residency.room("cpu").residents] == ["echo/b"]


async def test_request_waits_for_the_end_of_a_measurement_that_is_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with for_two(tmp_path, monkeypatch) as server:
        await load_echoes(server, "b", pin=True)
        job = await measurement(server, 500)
        while await phase(server, job.id) != "timing":
            await asyncio.sleep(0.02)

        async def use() -> None:
            async with server.autoload.serving("echo/a"):
                pass

        waiting = asyncio.create_task(use())
        await asyncio.wait({waiting}, timeout=0.5)
        assert not waiting.done(), "it would not fit beside the worker of the measurement"
        assert states(server)["a"] is REGISTERED
        await server.jobs.cancel(job.id)
        await waiting

        assert states(server) == {"a": READY, "b": READY}


async def test_busy_and_pinned_variants_stay_and_the_measurement_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with for_two(tmp_path, monkeypatch) as server:
        await load_echoes(server, "b", pin=True)

        async with server.autoload.serving("echo/a"):
            job = await ended(server, (await measurement(server, 2)).id)

        assert job.error is not None
        assert (job.state, job.error.code) == ("failed", "does_not_fit")
        assert "busy: 'echo/a'; pinned: 'echo/b'" in job.error.message
        assert states(server) == {"a": READY, "b": READY}


async def test_without_autoload_it_evicts_nobody_and_says_how_to_get_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with for_two(tmp_path, monkeypatch, autoload=False) as server:
        job = await ended(server, (await measurement(server, 2)).id)

        assert job.error is not None
        assert (job.state, job.error.code) == ("failed", "does_not_fit")
        assert 'Load it with "evict": true' in job.error.message
        assert states(server) == {"a": READY, "b": READY}


async def test_variants_that_went_for_a_measurement_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with for_two(tmp_path, monkeypatch) as server:
        job = await ended(server, (await measurement(server, 2)).id)
        assert job.state == "succeeded", job.error
        await until(lambda: len(server.residency.room("cpu").residents) == 1)

        async with server.autoload.serving("echo/a") as served:
            assert served.worker.is_ready
