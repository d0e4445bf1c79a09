"""The timing of a worker: the arithmetic on numbers, the loop on a real worker with the echo model."""

import asyncio
from collections import Counter

import pytest

from app.core.energy import DeviceMeter
from app.core.job_documents import Workload
from app.core.load_request import LoadRequest
from app.core.neighbours import Neighbours
from app.core.server import Server
from app.core.speed import SpeedTest, Timeline, percentiles
from app.supervisor.worker import Worker
from workers.protocol.messages import Generate, JobProgress, SequenceUpdate, Step, StepStats
from workers.protocol.specs import SamplingParams

TOKENS = list(range(1, 200))
NO_GPU = DeviceMeter("")


def update(*token_ids: int) -> SequenceUpdate:
    return SequenceUpdate(request_id="a", token_ids=list(token_ids))


def test_percentiles_are_values_and_need_enough_of_them() -> None:
    few, ten, many = (
        percentiles([3.0, 1.0, 2.0]),
        percentiles([float(i) for i in range(10)]),
        percentiles([float(i) for i in range(1, 101)]),
    )

    assert (few.num_values, few.p50, few.p90, few.p99) == (3, 2.0, None, None)
    assert (ten.p50, ten.p90, ten.p99) == (4.0, 8.0, None)
    assert (many.p50, many.p90, many.p99) == (50.0, 90.0, 99.0)
    assert percentiles([]).p50 is None


def test_time_per_token_leaves_out_the_first_and_gaps_are_between_arrivals() -> None:
    timeline = Timeline()

    timeline.add([update()], 0.5)
    timeline.add([update(1)], 1.0)
    timeline.add([update(2), update(3)], 1.5)
    timeline.add([update(4)], 4.0)

    assert timeline.first_s == 1.0
    assert timeline.tpot_s == 1.0
    assert timeline.gaps_s == [0.5, 2.5]
    assert Timeline().tpot_s is None


async def loaded(server: Server, name: str) -> Worker:
    await server.loader.load(LoadRequest(model=f"echo/{name}"), wait=True)
    entry = server.catalog.find(f"echo/{name}")
    assert entry is not None
    return entry.life.require_ready()


def watched(server: Server) -> Neighbours:
    neighbours = Neighbours(server.catalog.list)
    server.supervisor.observe_steps(neighbours.observe)
    return neighbours


async def test_every_level_runs_whole_rounds_of_requests_of_the_stated_length(server: Server) -> None:
    worker, neighbours, ticks = await loaded(server, "a"), watched(server), list[JobProgress]()
    workload = Workload(streams=(1, 3), prompt_tokens=5, new_tokens=4)
    company = neighbours.begin(worker.variant_id)

    levels = await SpeedTest("job", worker, workload, company, NO_GPU).run(TOKENS, ticks.append)

    assert [(level.streams, level.requests) for level in levels] == [(1, 10), (3, 15)]
    for level in levels:
        assert level.ttft_ms.num_values == level.tpot_ms.num_values == level.requests
        assert level.tokens_per_s == pytest.approx(level.requests * 4 / level.duration_s)
        assert level.tokens_per_joule is None
    # Echo takes 2 ms per token, and ten requests in turn have three tokens each behind the first. By the clock of one
    # request its tokens may come at once, if their reader was set aside.
    alone = levels[0]
    assert alone.duration_s >= 10 * 3 * 0.002
    assert alone.tpot_ms.p50 is not None
    assert alone.tpot_ms.p50 <= 1000 * alone.duration_s / 3
    assert [(tick.done, tick.total) for tick in ticks][-1] == (25, 25)
    assert company.found() == []
    assert worker.num_streams == 0


async def test_requests_of_others_are_reported_as_neighbours(server: Server) -> None:
    worker, other, neighbours = await loaded(server, "a"), await loaded(server, "b"), watched(server)
    params = SamplingParams(max_tokens=4000, ignore_eos=True)
    streams = [one.submit(Generate(request_id="x", prompt_ids=[1, 2], params=params)) for one in (worker, other)]
    await streams[1].get()
    company = neighbours.begin(worker.variant_id)

    num_steps = Counter[str]()
    server.supervisor.observe_steps(lambda variant_id, step: num_steps.update([variant_id]))
    workload = Workload(streams=(4,), prompt_tokens=5, new_tokens=4)
    await SpeedTest("job", worker, workload, company, NO_GPU).run(TOKENS, lambda tick: None)

    found = {one.variant: one.num_steps for one in company.found()}
    assert found.keys() == {"echo/a", "echo/b"}
    assert min(found.values()) > 0
    assert found["echo/a"] <= num_steps["echo/a"], "a step has news for four streams and is one step"
    for one in (worker, other):
        one.cancel("x")


def test_steps_before_the_beginning_and_empty_ones_do_not_count() -> None:
    neighbours = Neighbours(list)
    busy, idle = (Step(step=1, updates=[], stats=StepStats(num_decode_tokens=count)) for count in (1, 0))
    neighbours.observe("a/b", busy)
    company = neighbours.begin("a/own")

    neighbours.observe("a/own", busy)
    neighbours.observe("a/b", idle)
    before = company.found()
    neighbours.observe("a/b", busy)

    assert before == []
    assert [(one.variant, one.num_steps, one.is_loading) for one in company.found()] == [("a/b", 1, False)]


async def test_cancelled_timing_leaves_no_request_behind(server: Server) -> None:
    worker = await loaded(server, "a")
    workload = Workload(streams=(4,), prompt_tokens=5, new_tokens=3000)
    timing = SpeedTest("job", worker, workload, watched(server).begin(worker.variant_id), NO_GPU)
    task = asyncio.create_task(timing.run(TOKENS, lambda tick: None))
    while worker.num_streams < 4:
        await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert worker.num_streams == 0


def test_meter_of_a_machine_without_gpu_knows_nothing() -> None:
    # with the real library, which finds no driver here; on a machine with one, no such device
    meter = DeviceMeter("GPU-00000000-0000-0000-0000-000000000000")

    assert (meter.energy_joules(), meter.process_bytes(1), meter.driver()) == (None, None, None)
