"""The job queue of a real server, with real job processes that end before they have done much."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from app_servers import LONG_JOB, echo_settings, running_server

from app.core import quantization
from app.core.compress_request import resolve_spec
from app.core.job_documents import QuantizeSpec
from app.core.publish import MAX_ATTEMPTS
from app.core.server import Server
from app.errors import Conflict, DiskFull, InvalidRequest, NotFound
from app.schemas.jobs import JobObject, QuantizeBody
from app.store import events
from tests.server_processes import job_pid


def spec(server: Server, **fields: object) -> QuantizeSpec:
    body = QuantizeBody.model_validate({"model": "slimstory", "method": "int8", **fields})
    return resolve_spec(body, server.catalog, server.settings)


async def wait_running(server: Server, job_id: str) -> None:
    while (await server.jobs.get(job_id)).state != "running":
        await asyncio.sleep(0.02)


async def states(server: Server, job_id: str) -> list[str]:
    """States in the job's events, in order; ends with the job."""
    found = []
    async for event in server.jobs.events(job_id, 0, ping_s=10):
        if event is not None and event.type == "state":
            found.append(event.data_json.partition('"state":"')[2].partition('"')[0])
    return found


def files_below(folder: Path) -> list[Path]:
    return sorted(path for name in ("staging", "variants", "trash") for path in (folder / name).iterdir())


async def test_cancel_ends_queued_and_running_jobs_and_leaves_no_files(server: Server) -> None:
    running = await server.jobs.submit(spec(server, **LONG_JOB), None)
    queued = await server.jobs.submit(spec(server, name="second"), None)
    await wait_running(server, running.id)

    cancelled: list[JobObject] = [await server.jobs.cancel(queued.id), await server.jobs.cancel(running.id)]

    assert [job.state for job in cancelled] == ["cancelled", "cancelled"]
    assert await states(server, running.id) == ["queued", "running", "cancelled"]
    assert await states(server, queued.id) == ["queued", "cancelled"]
    assert files_below(server.settings.data_dir) == []
    assert server.catalog.find(running.variant) is None
    with pytest.raises(Conflict) as error:
        await server.jobs.cancel(running.id)
    assert error.value.code == "job_finished"


async def test_events_do_not_miss_an_end_that_comes_while_they_are_read(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.jobs.submit(spec(server, **LONG_JOB), None)
    queued = await server.jobs.submit(spec(server, name="second"), None)
    run = server.store.run

    async def run_then_end(query: Callable[..., Any], *args: Any) -> Any:
        rows = await run(query, *args)
        if query is events.select_after and not rows:
            monkeypatch.undo()
            await server.jobs.cancel(queued.id)
        return rows

    monkeypatch.setattr(server.store, "run", run_then_end)

    assert await states(server, queued.id) == ["queued", "cancelled"]


async def test_calibrated_job_is_cancelled_behind_its_first_module_and_leaves_no_files(server: Server) -> None:
    # Seconds per layer: the first module is a long way from the end.
    job = await server.jobs.submit(spec(server, **LONG_JOB), None)
    async for event in server.jobs.events(job.id, 0, ping_s=10):
        if event is not None and event.type == "progress":
            break

    cancelled = await server.jobs.cancel(job.id)

    assert cancelled.state == "cancelled"
    assert (await states(server, job.id))[-1] == "cancelled"
    assert files_below(server.settings.data_dir) == []
    assert server.catalog.find("slimstory/gptq-int4-g32") is None


async def test_same_key_gives_the_same_job_and_another_body_a_conflict(server: Server) -> None:
    first = await server.jobs.submit(spec(server, **LONG_JOB), "key")

    again = await server.jobs.submit(spec(server, **LONG_JOB), "key")
    with pytest.raises(Conflict) as mismatch:
        await server.jobs.submit(spec(server, **LONG_JOB, seed=1), "key")
    with pytest.raises(Conflict) as running:
        await server.jobs.submit(spec(server, **LONG_JOB), None)

    assert again.id == first.id
    assert mismatch.value.code == "idempotency_mismatch"
    assert running.value.code == "job_running"
    assert [job.id for job in await server.jobs.list()] == [first.id]


async def test_stopped_server_queues_its_running_job_again_for_the_next_one(tmp_path: Path) -> None:
    settings = echo_settings(tmp_path)
    async with running_server(settings) as first:
        job = await first.jobs.submit(spec(first, **LONG_JOB), None)
        await wait_running(first, job.id)

    # finished layers stay for the next server
    assert {path.name for path in files_below(tmp_path)} <= {job.id}
    async with running_server(settings) as second:
        await wait_running(second, job.id)
        found = await second.jobs.get(job.id)

        assert (found.state, found.attempt) == ("running", 1)
        await second.jobs.cancel(job.id)


async def killed_job(server: Server, kills: int, **fields: object) -> JobObject:
    """A job whose process gets SIGKILL in its first `kills` attempts, at its end."""
    job = await server.jobs.submit(spec(server, **fields), None)
    for attempt in range(1, kills + 1):
        while (pid := job_pid(psutil.Process())) is None or (await server.jobs.get(job.id)).attempt != attempt:
            await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        while (now := await server.jobs.get(job.id)).attempt == attempt and now.finished is None:
            await asyncio.sleep(0.02)
    _ = [event async for event in server.jobs.events(job.id, 0, ping_s=10)]
    return await server.jobs.get(job.id)


async def test_job_whose_process_is_killed_goes_on_by_itself(server: Server) -> None:
    job = await killed_job(server, 1)

    assert (job.state, job.attempt) == ("succeeded", 2)
    assert (await states(server, job.id))[:4] == ["queued", "running", "queued", "running"]
    # Its folder goes right behind its last state; the test's time limit is the deadline.
    while list((server.settings.data_dir / "staging").iterdir()):
        await asyncio.sleep(0.02)


async def test_job_that_dies_in_every_attempt_fails_with_the_reason(server: Server) -> None:
    job = await killed_job(server, MAX_ATTEMPTS, **LONG_JOB)

    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "job_crashed")
    assert "SIGKILL" in job.error.message
    assert files_below(server.settings.data_dir) == []


async def test_follower_that_comes_back_continues_behind_its_last_event(server: Server) -> None:
    job = await server.jobs.submit(spec(server, **LONG_JOB), None)
    await wait_running(server, job.id)

    async def follow() -> list[int]:
        return [event.seq async for event in server.jobs.events(job.id, 1, ping_s=10) if event is not None]

    following = asyncio.create_task(follow())
    await server.jobs.cancel(job.id)

    seqs = await following
    assert seqs == list(range(2, 2 + len(seqs)))
    assert len(seqs) >= 2


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "slimstori"}, NotFound, "base_not_found"),
        ({"name": "fp32"}, InvalidRequest, "invalid_value"),
        ({"name": "Not-a-name"}, InvalidRequest, "invalid_value"),
    ],
    ids=["unknown-base", "name-of-a-dtype", "bad-name"],
)
async def test_impossible_job_is_refused(
    server: Server, fields: dict[str, object], error: type[InvalidRequest], code: str
) -> None:
    with pytest.raises(error) as refused:
        spec(server, **fields)

    assert refused.value.code == code


async def test_job_without_room_on_disk_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_SMALL_FILES_BYTES", 2**60)

    with pytest.raises(DiskFull):
        await server.jobs.submit(spec(server), None)

    assert await server.jobs.list() == []


async def test_changed_base_is_refused(server: Server, tmp_path: Path) -> None:
    base = server.catalog.bases.get("slimstory")
    assert base is not None
    base.info.files["config.json"] = (1, 1)

    with pytest.raises(Conflict) as refused:
        await server.jobs.submit(spec(server), None)

    assert refused.value.code == "base_changed"
