"""Jobs as the front end sees them: a real child process at the other end of a real socket."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.workers.tiny import save_tiny_model
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.framing import SocketChannel
from workers.protocol.messages import Cancel, Failed, FromJob, JobDone, JobProgress, StartJob
from workers.protocol.specs import CompressSpec, InspectSpec, JobSpec, VerifySpec

# Three children that import torch one after another, at low priority, on a machine that may be busy.
DEADLINE_S = 300


class Job:
    """One child: its channel, and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.channel: SocketChannel[FromJob] = SocketChannel(sock, FromJob)

    def messages(self) -> list[FromJob]:
        """Everything until the child closes the socket."""
        return list(iter(self.channel.receive, None))


@contextmanager
def started(spec: JobSpec) -> Iterator[Job]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-m", "workers", "job", "--fd", str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        with process:
            ours.settimeout(DEADLINE_S)
            job = Job(process, ours)
            job.channel.send(StartJob(spec=spec))
            try:
                yield job
            finally:
                process.kill()


def compress_spec(base: Path, output: Path) -> CompressSpec:
    return CompressSpec(
        base_path=str(base),
        output_dir=str(output),
        base="tiny",
        variant="tiny/int8",
        method="int8",
        device="cpu",
        num_threads=1,
    )


@pytest.mark.timeout(2 * DEADLINE_S)
def test_base_is_inspected_compressed_and_verified(tmp_path: Path) -> None:
    base, output = save_tiny_model(tmp_path / "base"), tmp_path / "staging" / "job" / "out"

    with started(InspectSpec(path=str(base), target_dir=str(tmp_path / "target"))) as job:
        *_, inspected = job.messages()
        inspect_status = job.process.wait(DEADLINE_S)
    with started(compress_spec(base, output)) as job:
        *progress, compressed = job.messages()
        compress_status = job.process.wait(DEADLINE_S)
    verify = VerifySpec(
        variant_dir=str(output), base_path=str(base), text_ids=tuple(range(3, 60)), max_kl=0.01, num_threads=1
    )
    with started(verify) as job:
        *_, verified = job.messages()

    assert isinstance(inspected, JobDone)
    assert inspected.base is not None
    assert inspected.base.architecture == "LlamaForCausalLM"
    assert isinstance(compressed, JobDone)
    assert compressed.compressed is not None
    assert compressed.compressed.num_compressed == 14
    assert all(isinstance(message, JobProgress) for message in progress)
    assert len([message for message in progress if message.error_after is not None]) == 14
    assert all(message.rss_bytes > 2**20 for message in progress)
    assert isinstance(verified, JobDone)
    assert verified.verified is not None
    assert verified.verified.kl_mean <= 0.01
    assert (inspect_status, compress_status) == (0, 0)


def test_job_that_fails_says_why_and_exits(tmp_path: Path) -> None:
    with started(InspectSpec(path=str(tmp_path / "nowhere"), target_dir=str(tmp_path))) as job:
        messages = job.messages()
        status = job.process.wait(DEADLINE_S)

    assert len(messages) == 1
    assert isinstance(messages[0], Failed)
    assert messages[0].code is WorkerErrorCode.BASE_NOT_FOUND
    assert str(tmp_path) not in messages[0].message
    assert status == 1


def test_unreachable_hub_is_said_to_be_so_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    with started(InspectSpec(hub_id="someone/small", target_dir=str(tmp_path / "target"))) as job:
        *_, failed = job.messages()

    assert isinstance(failed, Failed)
    assert failed.code is WorkerErrorCode.HUB_UNREACHABLE
    assert "load its folder" in failed.message


def cancel(job: Job) -> None:
    job.channel.send(Cancel(request_id=""))


def hang_up(job: Job) -> None:
    job.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(("act", "is_answered"), [(cancel, True), (hang_up, False)], ids=["cancel", "hang-up"])
def test_unwanted_job_ends_before_it_looks_at_its_base(
    tmp_path: Path, act: Callable[[Job], None], is_answered: bool
) -> None:
    with started(compress_spec(tmp_path / "nowhere", tmp_path / "out")) as job:
        act(job)
        messages = job.messages()
        status = job.process.wait(DEADLINE_S)

    assert [message.code for message in messages if isinstance(message, Failed)] == (
        [WorkerErrorCode.CANCELLED] if is_answered else []
    )
    assert status == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(DEADLINE_S)
def test_job_that_reaches_its_memory_limit_says_so(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", hidden_size=2048)
    spec = msgspec.structs.replace(compress_spec(base, tmp_path / "staging" / "out"), memory_bytes=2**26)

    with started(spec) as job:
        *_, failed = job.messages()

    assert isinstance(failed, Failed)
    assert failed.code is WorkerErrorCode.INSUFFICIENT_MEMORY
    assert "limit of 67,108,864 bytes" in failed.message
