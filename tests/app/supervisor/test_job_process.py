"""Real job processes: a result, a reason, or a death that is told."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import save_file

from app import embedded
from app.supervisor.job import JobFailed, JobProcess
from app.supervisor.stream import WorkerGone
from app.supervisor.supervisor import Supervisor, Watch
from tests.workers.tiny import save_tiny_model
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import Calibration, SmoothQuantRecipe
from workers.protocol.specs import CompressSpec, InspectSpec


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    # jobs give way to everything else, and say nothing while they import torch
    supervisor = Supervisor(Watch(step_timeout_s=500, load_timeout_s=500))
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


# Twenty seconds of the processor, for a process that gives way to whatever else runs.
@pytest.mark.timeout(1800)
async def test_memory_of_a_job_does_not_grow_with_the_layers_it_has_done(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "dtype": torch.bfloat16}
    base = save_tiny_model(tmp_path / "base", **sizes)
    ids = tmp_path / "ids.safetensors"
    save_file({"token_ids": torch.arange(3, 67, dtype=torch.int32).reshape(2, 32)}, ids)
    spec = CompressSpec(
        base_path=str(base),
        output_dir=str(tmp_path / "staging" / "out"),
        base="tiny",
        variant="tiny/smoothquant-w8a8",
        method="smoothquant-w8a8",
        recipe=SmoothQuantRecipe(),
        calibration=Calibration(token_ids_path=str(ids)),
        device="cpu",
        num_threads=1,
    )
    rss_bytes: dict[int, int] = {}

    def note(progress: JobProgress) -> None:
        if progress.phase == "compressing" and progress.total == sizes["num_hidden_layers"] and progress.rss_bytes:
            rss_bytes[progress.done] = progress.rss_bytes

    job = await supervisor.start_job("compress", spec, note)
    await job.result()

    # A layer takes 13 MB in fp32. Its garbage moved the second half's median by 29 MiB and more; given back, what the
    # heap keeps in huge pages moves it by up to 7 MiB on a busy machine, and the last layer by more than that.
    sizes_by_layer = [rss_bytes[done] for done in sorted(rss_bytes)]
    half = len(sizes_by_layer) // 2
    assert half >= 10
    assert median(sizes_by_layer[half:]) - median(sizes_by_layer[:half]) < 18 * 2**20
