"""Measurements of speed as jobs of a real server, on the embedded model."""

import asyncio
from pathlib import Path

import psutil
import pytest
from app_servers import echo_settings, running_server

from app.core import fit
from app.core.compress_request import resolve_spec
from app.core.job_documents import MeasureJob
from app.core.load_request import LoadRequest
from app.core.measurement import resolve_measure
from app.core.server import Server
from app.errors import InvalidRequest
from app.schemas.jobs import JobObject, MeasureBody, QuantizeBody
from app.schemas.reports import MeasurementObject
from app.store import measurements
from tests.server_processes import serving_pids
from workers.protocol.messages import Generate
from workers.protocol.specs import SamplingParams

SHORT = {"model": "slimstory", "quality": False, "streams": [2, 1, 2], "prompt_tokens": 8, "new_tokens": 2}


def spec(server: Server, **fields: object) -> MeasureJob:
    return resolve_measure(MeasureBody.model_validate({**SHORT, **fields}), server.catalog, server.settings)


async def ended(server: Server, job_id: str) -> JobObject:
    _ = [event async for event in server.jobs.events(job_id, 0, ping_s=10)]
    return await server.jobs.get(job_id)


async def test_variant_that_is_not_loaded_is_timed_on_a_worker_of_its_own_and_the_numbers_outlive_a_restart(
    tmp_path: Path,
) -> None:
    settings = echo_settings(tmp_path / "data")
    async with running_server(settings) as first:
        wanted = spec(first)
        job = await ended(first, (await first.jobs.submit(wanted, None)).id)

        assert job.state == "succeeded", job.error
        result = job.result
        assert isinstance(result, MeasurementObject)
        assert result.speed is not None
        assert result.quality is None
        assert serving_pids(psutil.Process()) == []
        assert first.catalog.entry("slimstory").life.worker is None
    async with running_server(settings) as second:
        (row,) = await second.store.run(measurements.select_all)
        speeds = second.catalog.resolve("slimstory").speeds

    speed = result.speed
    assert [level.streams for level in speed.levels] == [1, 2]
    assert not speed.was_serving
    assert speed.neighbours == []
    assert speed.peak_bytes >= speed.process_bytes > speed.weight_bytes > 0
    assert speed.load_s > 0
    assert speed.floor_ms == pytest.approx(1000 * speed.weight_bytes / speed.read_bytes_per_s)
    assert speed.x_of_floor == pytest.approx((speed.levels[0].tpot_ms.p50 or 0) / speed.floor_ms)
    # the embedded model is stored in 16 bits and loaded in 16 or 32
    assert speed.bits_per_weight == pytest.approx({"bf16": 16, "fp32": 32}[speed.dtype], rel=0.01)
    assert speed.bytes_on_disk > 0
    assert result.environment.software["torch"]
    assert (row.variant, row.kind, row.device) == (wanted.variant, "speed", "cpu")
    assert row.environment["device_name"] == result.environment.device_name
    assert [one.report for one in speeds["cpu"]] == [speed]


async def test_loaded_variant_is_timed_on_the_worker_that_serves_it(server: Server) -> None:
    await server.loader.load(LoadRequest(model="slimstory"), wait=True)
    before = serving_pids(psutil.Process())

    job = await ended(server, (await server.jobs.submit(spec(server), None)).id)

    assert isinstance(job.result, MeasurementObject)
    assert job.result.speed is not None
    assert job.result.speed.was_serving
    assert serving_pids(psutil.Process()) == before
    assert server.catalog.resolve("slimstory").state == "ready"


async def test_who_worked_while_the_memory_was_measured_is_a_neighbour(server: Server) -> None:
    await server.loader.load(LoadRequest(model="echo/other"), wait=True)
    other = server.catalog.entry("echo/other").life.require_ready()
    params = SamplingParams(max_tokens=100_000, ignore_eos=True)
    job = await server.jobs.submit(spec(server), None)
    other.submit(Generate(request_id="x", prompt_ids=[1, 2], params=params))
    # until the worker is loaded nothing has been timed but the memory
    while (now := await server.jobs.get(job.id)).progress is None and not now.finished:
        await asyncio.sleep(0.01)
    other.cancel("x")

    result = (await ended(server, job.id)).result

    assert isinstance(result, MeasurementObject)
    assert result.speed is not None
    (found,) = result.speed.neighbours
    assert found.variant == "echo/other"
    assert found.num_steps > 0


async def test_cancelled_measurement_ends_its_worker(server: Server) -> None:
    job = await server.jobs.submit(spec(server, streams=[1], new_tokens=500), None)
    while ((now := await server.jobs.get(job.id)).progress is None or now.progress.phase != "timing") and not (
        now.finished
    ):
        await asyncio.sleep(0.01)

    cancelled = await server.jobs.cancel(job.id)

    assert cancelled.state == "cancelled"
    assert serving_pids(psutil.Process()) == []
    assert await server.store.run(measurements.select_all) == []


async def test_new_variant_is_measured_if_the_settings_say_so(tmp_path: Path) -> None:
    async with running_server(echo_settings(tmp_path / "data", auto_measure="quality")) as server:
        body = QuantizeBody(model="slimstory", method="int8")
        made = await server.jobs.submit(resolve_spec(body, server.catalog, server.settings), None)
        assert (await ended(server, made.id)).state == "succeeded"
        while len(jobs := await server.jobs.list()) < 2:
            await asyncio.sleep(0.02)

        measured = await ended(server, jobs[0].id)

    assert (measured.kind, measured.variant, measured.state) == ("measure", "slimstory/int8", "succeeded")
    assert isinstance(measured.result, MeasurementObject)
    assert measured.result.quality is not None
    assert measured.result.speed is None


async def test_measurement_of_a_variant_that_is_deleted_meanwhile_says_so(server: Server) -> None:
    body = QuantizeBody(model="slimstory", method="int8")
    made = await server.jobs.submit(resolve_spec(body, server.catalog, server.settings), None)
    assert (await ended(server, made.id)).state == "succeeded"
    job = await server.jobs.submit(spec(server, model="slimstory/int8", quality=True, speed=False), None)
    while (await server.jobs.get(job.id)).state == "queued":
        await asyncio.sleep(0.01)

    await server.catalog.delete("slimstory/int8", force=False)
    failed = await ended(server, job.id)

    assert failed.error is not None
    assert (failed.state, failed.error.code) == ("failed", "model_not_found")
    assert failed.error.message == "Variant 'slimstory/int8' was deleted while it was measured."


async def test_worker_that_has_no_room_is_not_started(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: 1000)

    job = await ended(server, (await server.jobs.submit(spec(server), None)).id)

    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "does_not_fit")
    assert "1,000 are free" in job.error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speed": False}, "speed"),
        ({"streams": [65]}, "streams"),
        ({"prompt_tokens": 512}, "prompt_tokens"),
        ({"prompt_tokens": 500, "new_tokens": 13}, "prompt_tokens"),
    ],
    ids=["nothing", "streams", "prompt", "prompt-and-answer"],
)
async def test_impossible_measurement_is_refused(server: Server, fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        spec(server, **fields)

    assert refused.value.param == param


async def test_context_is_used_up_to_its_end(server: Server) -> None:
    found = spec(server, prompt_tokens=500, new_tokens=None)

    assert found.speed is not None
    assert (found.speed.prompt_tokens, found.speed.new_tokens) == (500, 12)


async def test_text_shorter_than_a_prompt_fails_the_job_with_the_count(server: Server) -> None:
    job = await ended(server, (await server.jobs.submit(spec(server, text="a b c " * 6, prompt_tokens=100), None)).id)

    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "invalid_value")
    assert "100" in job.error.message
