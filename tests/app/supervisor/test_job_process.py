"""Real job processes: a result, a reason, or a death that is told."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app import embedded
from app.supervisor.job import JobFailed, JobProcess
from app.supervisor.stream import WorkerGone
from app.supervisor.supervisor import Supervisor, Watch
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import JobProgress
from workers.protocol.specs import InspectSpec


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(Watch(step_timeout_s=60, load_timeout_s=60))
    await supervisor.start()
    yield supervisor
    await supervisor.stop()


def ignore(progress: JobProgress) -> None:
    """Inspections are too short to be followed."""


async def start(supervisor: Supervisor, folder: Path, target: Path) -> JobProcess:
    return await supervisor.start_job("inspect", InspectSpec(path=str(folder), target_dir=str(target)), ignore)


async def test_result_arrives_and_the_process_is_gone(supervisor: Supervisor, tmp_path: Path) -> None:
    job = await start(supervisor, embedded.model_path(), tmp_path)

    done = await job.result()

    assert done.base is not None
    assert done.base.architecture == "LlamaForCausalLM"
    assert job.is_gone


async def test_failure_has_the_code_that_the_process_sent(supervisor: Supervisor, tmp_path: Path) -> None:
    job = await start(supervisor, tmp_path / "nothing", tmp_path)

    with pytest.raises(JobFailed) as failed:
        await job.result()

    assert failed.value.code is WorkerErrorCode.BASE_NOT_FOUND


async def test_death_without_a_word_is_no_result(supervisor: Supervisor, tmp_path: Path) -> None:
    job = await start(supervisor, embedded.model_path(), tmp_path)
    os.kill(job.pid, signal.SIGSTOP)
    os.kill(job.pid, signal.SIGKILL)

    with pytest.raises(WorkerGone, match="SIGKILL") as gone:
        await job.result()

    assert not gone.value.is_deliberate


async def test_job_that_does_not_listen_is_killed_when_it_is_cancelled(supervisor: Supervisor, tmp_path: Path) -> None:
    job = await start(supervisor, embedded.model_path(), tmp_path)
    os.kill(job.pid, signal.SIGSTOP)

    await job.cancel(grace_s=0.2)

    assert job.is_gone
    with pytest.raises(WorkerGone) as gone:
        await job.result()
    assert gone.value.is_deliberate
