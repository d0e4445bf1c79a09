"""Real worker processes behind the real socket: streams, crashes, hangs, stops."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import psutil
import pytest
import torch

from app.supervisor.stream import Stream, WorkerGone
from app.supervisor.supervisor import Supervisor, Watch
from app.supervisor.worker import Worker
from workers.protocol.messages import FinishReason, Generate, Step
from workers.protocol.specs import EchoSpec, SamplingParams, ServeSpec

# Dies before it imports anything large: the child refuses a fault that it does not understand.
DIES_AT_ONCE = "nonsense"
# Milliseconds alone, seconds on a crowded machine.
PATIENCE_S = 120


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    # what comes within PATIENCE_S has not waited for a time-out
    supervisor = Supervisor(Watch(step_timeout_s=2 * PATIENCE_S, load_timeout_s=2 * PATIENCE_S))
    await supervisor.start()
    yield supervisor
    await supervisor.stop()


def echo_spec(itl_s: float = 0.01) -> ServeSpec:
    return ServeSpec(variant="echo/echo", path="", num_threads=1, echo=EchoSpec(itl_s=itl_s))


def generate(request_id: str, max_tokens: int) -> Generate:
    params = SamplingParams(max_tokens=max_tokens, temperature=0)
    return Generate(request_id=request_id, prompt_ids=[5, 6, 7], params=params)


async def start_echo(supervisor: Supervisor, itl_s: float = 0.01) -> Worker:
    worker = await supervisor.start_worker(echo_spec(itl_s))
    await worker.wait_ready()
    return worker


async def read_to_the_end(stream: Stream) -> tuple[list[int], FinishReason]:
    token_ids: list[int] = []
    while True:
        for update in await asyncio.wait_for(stream.get(), PATIENCE_S):
            token_ids += update.token_ids
            if update.finish_reason is not None:
                return token_ids, update.finish_reason


async def test_streams_are_kept_apart_a_cancelled_one_ends_and_idleness_is_no_hang(supervisor: Supervisor) -> None:
    steps: list[Step] = []
    supervisor.observe_steps(lambda variant_id, step: steps.append(step))
    worker = await start_echo(supervisor)

    long = worker.submit(generate("long", 10_000))
    results = await asyncio.gather(*(read_to_the_end(worker.submit(generate(f"r{n}", n))) for n in range(1, 6)))
    worker.cancel("long")
    _, cancelled = await read_to_the_end(long)

    assert [reason for _, reason in results] == [FinishReason.LENGTH] * 5
    assert [tokens for tokens, _ in results] == [([5, 6, 7] * 2)[:n] for n in range(1, 6)]
    assert cancelled is FinishReason.CANCELLED
    assert worker.num_streams == 0
    assert worker.hang_reason(time.monotonic() + 3600, step_timeout_s=1, load_timeout_s=1) is None
    assert [step.step for step in steps] == sorted(step.step for step in steps)


async def threads_of_a_step(worker: Worker, stream: Stream, unlike: int = 0) -> int:
    """Of the worker's newest step; waits for one with another number of threads than `unlike`."""
    while True:
        await asyncio.wait_for(stream.get(), PATIENCE_S)
        if worker.stats.num_threads != unlike:
            return worker.stats.num_threads


async def test_workers_share_the_cores_while_both_compute(supervisor: Supervisor) -> None:
    spec = msgspec.structs.replace(echo_spec(), num_threads=torch.get_num_threads())
    one, other = [await supervisor.start_worker(spec) for _ in range(2)]
    await asyncio.gather(one.wait_ready(), other.wait_ready())

    first = one.submit(generate("first", 10_000))
    alone = await threads_of_a_step(one, first)
    second = other.submit(generate("second", 10_000))
    together = await threads_of_a_step(other, second)
    if alone > 1:
        assert await threads_of_a_step(one, first, unlike=alone) == together
    other.cancel("second")

    assert together == max(1, alone // 2)
    if alone > 1:
        assert await threads_of_a_step(one, first, unlike=together) == alone


async def test_killed_worker_ends_its_streams_at_once(supervisor: Supervisor, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start_echo(supervisor)
    streams = [worker.submit(generate(f"r{n}", 10_000)) for n in range(8)]
    await asyncio.gather(*(stream.get() for stream in streams))

    os.kill(worker.pid, signal.SIGKILL)
    results = await asyncio.gather(*(read_to_the_end(stream) for stream in streams), return_exceptions=True)

    assert [type(result) for result in results] == [WorkerGone] * 8
    assert "SIGKILL" in str(results[0])
    with pytest.raises(WorkerGone):
        worker.submit(generate("late", 1))
    assert "INFO workers.serve: ready" in caplog.text, "the log has the worker's last words"


async def test_hung_worker_is_found_its_stacks_are_logged_and_it_is_killed(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start_echo(supervisor)
    stream = worker.submit(generate("r", 10_000))
    await stream.get()

    os.kill(worker.pid, signal.SIGSTOP)
    # not before: the first step may take longer than this
    supervisor.watch = replace(supervisor.watch, step_timeout_s=2.0)
    with pytest.raises(WorkerGone, match="no step for"):
        await read_to_the_end(stream)
    quiet_s = time.monotonic() - worker.last_step_at_s
    # SIGUSR1 and SIGTERM wait until it runs again; then the stacks come first.
    os.kill(worker.pid, signal.SIGCONT)
    await asyncio.wait_for(worker.wait_gone(), PATIENCE_S)

    assert quiet_s > 2.0
    assert not psutil.pid_exists(worker.pid)
    assert "most recent call first" in caplog.text


async def test_stop_lets_streams_end(supervisor: Supervisor) -> None:
    worker = await start_echo(supervisor)
    short = worker.submit(generate("short", 20))

    await worker.stop(drain_s=PATIENCE_S)

    assert (await read_to_the_end(short))[1] is FinishReason.LENGTH
    assert not psutil.pid_exists(worker.pid)


async def test_stop_cuts_off_streams_that_take_too_long(supervisor: Supervisor) -> None:
    worker = await start_echo(supervisor)
    endless = worker.submit(generate("endless", 10_000))

    await worker.stop(drain_s=0.2)

    with pytest.raises(WorkerGone) as gone:
        await read_to_the_end(endless)
    assert gone.value.is_deliberate
    assert not psutil.pid_exists(worker.pid)


async def test_worker_that_dies_at_its_start_is_reported_with_status_and_stderr(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervisor = Supervisor(Watch(step_timeout_s=1, load_timeout_s=60, faults=DIES_AT_ONCE))
    worker = await supervisor.start_worker(echo_spec())

    with pytest.raises(WorkerGone, match="exited with status 1"):
        await worker.wait_ready()

    assert "ValueError: fault 'nonsense'" in caplog.text
    await supervisor.stop()


async def test_load_without_progress_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    supervisor = Supervisor(Watch(step_timeout_s=1, load_timeout_s=0.5, faults="worker.load:hang=100"))
    await supervisor.start()
    worker = await supervisor.start_worker(echo_spec())

    with pytest.raises(WorkerGone, match="no progress of the load"):
        await asyncio.wait_for(worker.wait_ready(), PATIENCE_S)

    await supervisor.stop()
    assert not psutil.pid_exists(worker.pid)
