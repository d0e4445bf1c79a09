"""The serving worker: its loop in a thread over a real socket pair, and what only a real process can show."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from workers import serve
from workers.faults import parse_faults
from workers.protocol.errors import ProtocolError, WorkerErrorCode
from workers.protocol.framing import SocketChannel
from workers.protocol.messages import (
    Cancel,
    Failed,
    FinishReason,
    FromWorker,
    Generate,
    Loading,
    Ready,
    SequenceUpdate,
    StartServing,
    Step,
    Stop,
)
from workers.protocol.specs import EchoSpec, SamplingParams, ServeSpec

DEADLINE_S = 120


@dataclass
class FrontEnd:
    """The front end's end of the socket."""

    sock: socket.socket
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sock.settimeout(DEADLINE_S)
        self.channel: SocketChannel[FromWorker] = SocketChannel(self.sock, FromWorker)

    def start(self, **echo: float) -> Ready:
        self.channel.send(StartServing(spec=ServeSpec(variant="v", path="", echo=EchoSpec(**echo))))
        message = self.channel.receive()
        assert isinstance(message, Ready)
        return message

    def generate(self, request_id: str, prompt_ids: list[int], max_tokens: int = 4) -> None:
        params = SamplingParams(max_tokens=max_tokens)
        self.channel.send(Generate(request_id=request_id, prompt_ids=prompt_ids, params=params))

    def step(self) -> Step:
        message = self.channel.receive()
        assert isinstance(message, Step)
        self.steps.append(message)
        return message

    def updates(self, request_id: str) -> list[SequenceUpdate]:
        """All news of one request, up to its end."""
        news: list[SequenceUpdate] = []
        while not news or news[-1].finish_reason is None:
            news += [update for update in self.step().updates if update.request_id == request_id]
        return news


class Serving(threading.Thread):
    """`serve.main` in a thread: its exit status, or what it raised."""

    def __init__(self, sock: socket.socket, faults: str) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self._faults = parse_faults(faults)
        self.outcome: int | ProtocolError | None = None

    def run(self) -> None:
        with self._sock:
            try:
                self.outcome = serve.main(self._sock, self._faults)
            except ProtocolError as error:
                self.outcome = error

    def ended(self) -> int | ProtocolError | None:
        self.join(DEADLINE_S)
        return self.outcome


Begin = Callable[..., tuple[FrontEnd, Serving]]
Spawn = Callable[..., tuple[FrontEnd, "subprocess.Popen[bytes]"]]


@pytest.mark.parametrize(
    ("num_cores", "num_wanted", "num_sharing", "expected"),
    [(8, 8, 1, 8), (8, 8, 3, 2), (2, 2, 6, 1), (16, 4, 3, 4), (16, 4, 5, 3), (1, 1, 1, 1)],
)
def test_workers_that_compute_at_once_have_no_more_threads_than_there_are_cores(
    num_cores: int, num_wanted: int, num_sharing: int, expected: int
) -> None:
    assert serve.Threads(num_cores=num_cores, num_wanted=num_wanted).share(num_sharing) == expected


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts a worker's loop in a thread."""
    begun: list[tuple[FrontEnd, Serving]] = []

    def start(faults: str = "") -> tuple[FrontEnd, Serving]:
        near, far = socket.socketpair()
        begun.append((FrontEnd(near), Serving(far, faults)))
        begun[-1][1].start()
        return begun[-1]

    yield start
    for front, serving in begun:
        front.sock.close()
        serving.ended()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a worker as a real process."""
    spawned: list[tuple[FrontEnd, subprocess.Popen[bytes]]] = []

    def start(faults: str = "") -> tuple[FrontEnd, "subprocess.Popen[bytes]"]:
        near, far = socket.socketpair()
        with far:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "serve", "--fd", str(far.fileno())],
                pass_fds=[far.fileno()],
                env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "SLIMSERVE_FAULTS": faults},
                stderr=subprocess.PIPE,
            )
        spawned.append((FrontEnd(near), process))
        return spawned[-1]

    yield start
    for front, process in spawned:
        front.sock.close()
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_it_loads_generates_falls_silent_and_stops(begin: Begin) -> None:
    worker, serving = begin()

    info = worker.start(vocab_size=100).info
    worker.generate("a", [1, 2, 3], max_tokens=5)
    news = worker.updates("a")
    worker.generate("bad", [100])
    error = worker.updates("bad")[0].error
    worker.channel.send(Stop())

    assert (info.lane, info.vocab_size, info.device) == ("echo", 100, "cpu")
    assert info.process_bytes > 0
    assert 0 < info.load_s < DEADLINE_S
    assert [update.token_ids for update in news] == [[1], [2], [3], [1], [2]]
    assert news[-1].finish_reason is FinishReason.LENGTH
    assert news[0].scheduled_at_s == pytest.approx(time.monotonic(), abs=DEADLINE_S)
    assert error is not None
    assert error.code is WorkerErrorCode.INVALID_REQUEST
    assert [step.step for step in worker.steps] == [1, 2, 3, 4, 5, 6]
    assert [step.stats.num_running for step in worker.steps] == [1, 1, 1, 1, 0, 0]
    assert worker.steps[-1].stats.process_bytes > 0
    assert serving.ended() == 0


def test_cancel_mid_stream_ends_with_zero_running(begin: Begin) -> None:
    worker, _ = begin()
    worker.start(itl_s=0.01)
    worker.generate("a", [1, 2], max_tokens=2000)
    worker.step()

    worker.channel.send(Cancel(request_id="a"))
    news = worker.updates("a")

    assert news[-1].finish_reason is FinishReason.CANCELLED
    assert worker.steps[-1].stats.num_running == 0
    assert worker.steps[-1].stats.kv_usage_ratio == 0


def test_requests_that_arrive_while_it_works_join_the_batch(begin: Begin) -> None:
    worker, _ = begin()
    worker.start(itl_s=0.01)
    worker.generate("a", [1], max_tokens=4000)
    worker.step()

    worker.generate("b", [2], max_tokens=2)
    worker.updates("b")

    assert worker.steps[-1].stats.num_running == 1
    assert len(worker.steps) < 4000


@pytest.mark.parametrize("moment", ["before-start", "idle", "mid-stream"])
def test_a_front_end_that_is_gone_ends_the_worker(begin: Begin, moment: str) -> None:
    worker, serving = begin()
    if moment != "before-start":
        worker.start(itl_s=0.005)
    if moment == "mid-stream":
        worker.generate("a", [1], max_tokens=3000)
        worker.step()

    worker.sock.close()

    assert serving.ended() == 0


def test_it_dies_with_a_parent_that_is_killed(spawn: Spawn) -> None:
    # The parent holds the only other end; the worker hangs in a step, so only the kernel can end it.
    script = """
import socket, subprocess, sys
from workers.protocol.framing import SocketChannel
from workers.protocol.messages import FromWorker, Generate, Ready, StartServing
from workers.protocol.specs import EchoSpec, SamplingParams, ServeSpec
near, far = socket.socketpair()
child = subprocess.Popen([sys.executable, "-m", "workers", "serve", "--fd", str(far.fileno())], pass_fds=[far.fileno()])
far.close()
channel = SocketChannel(near, FromWorker)
channel.send(StartServing(spec=ServeSpec(variant="v", path="", echo=EchoSpec(itl_s=600.0))))
assert isinstance(channel.receive(), Ready)
channel.send(Generate(request_id="a", prompt_ids=[1], params=SamplingParams(max_tokens=5)))
channel.receive()
sys.stdout.write(f"{child.pid}\\n")
sys.stdout.flush()
child.wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))

    parent.kill()
    parent.wait()

    gone, _ = psutil.wait_procs([child], timeout=DEADLINE_S)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_a_load_that_raises_is_reported_with_a_code(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    worker, serving = begin("worker.load:raise")
    worker.channel.send(StartServing(spec=ServeSpec(variant="v", path="", echo=EchoSpec())))

    message = worker.channel.receive()

    assert isinstance(message, Failed)
    assert message.code is WorkerErrorCode.INTERNAL
    assert serving.ended() == 1
    assert "InjectedFault" in caplog.text


def test_a_folder_without_a_model_is_reported_with_a_code(begin: Begin, tmp_path: Path) -> None:
    worker, serving = begin()
    worker.channel.send(StartServing(spec=ServeSpec(variant="v", path=str(tmp_path))))

    message = worker.channel.receive()
    while isinstance(message, Loading):
        message = worker.channel.receive()

    assert isinstance(message, Failed)
    assert message.code is WorkerErrorCode.VARIANT_CORRUPT
    assert str(tmp_path) not in message.message
    assert serving.ended() == 1


@pytest.mark.parametrize("moment", ["before-start", "ready"])
def test_garbage_ends_the_worker_with_an_error(begin: Begin, moment: str) -> None:
    worker, serving = begin()
    if moment == "ready":
        worker.start()

    worker.sock.sendall(b"\x01\x00\x00\x00\xc1")

    assert isinstance(serving.ended(), ProtocolError)


def test_the_first_message_must_start_serving(begin: Begin) -> None:
    worker, serving = begin()

    worker.generate("a", [1])

    assert isinstance(serving.ended(), ProtocolError)


def test_a_process_ignores_ctrl_c_dumps_stacks_on_sigusr1_and_stops(spawn: Spawn) -> None:
    worker, process = spawn()
    worker.start()
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGUSR1)

    worker.generate("a", [1], max_tokens=1)
    worker.updates("a")
    worker.channel.send(Stop())

    assert process.wait(DEADLINE_S) == 0
    assert process.stderr is not None
    stacks = process.stderr.read()
    assert b"most recent call first" in stacks
    assert b"in _serve" in stacks


def test_a_kill_fault_kills_the_process_at_its_step(spawn: Spawn) -> None:
    worker, process = spawn("worker.step:kill@n=3")
    worker.start()
    worker.generate("a", [1], max_tokens=10)

    worker.step()
    worker.step()

    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    assert worker.channel.receive() is None


def test_importing_the_worker_leaves_heavy_libraries_alone() -> None:
    code = "import sys, workers.serve; sys.exit(bool({'fastapi', 'transformers', 'pydantic'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
