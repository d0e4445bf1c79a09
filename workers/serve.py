"""A serving worker: loads one variant, then runs the engine loop until the front end stops it or is gone.

Importing this module, and serving the echo model, leaves transformers alone: it takes seconds to import.
"""

import gc
import logging
import socket
import time
from dataclasses import dataclass

import msgspec
import torch

from workers.boundary import Failure, attempt
from workers.device import device_name, memory_peak_bytes, memory_used_bytes, resolve_device
from workers.engine.echo import PAGE_SIZE, EchoRunner
from workers.engine.engine import Engine, EngineLimits
from workers.faults import NO_FAULTS, Faults
from workers.protocol.errors import ProtocolError
from workers.protocol.framing import SocketChannel
from workers.protocol.messages import (
    Cancel,
    Failed,
    Generate,
    Loading,
    ModelInfo,
    Ready,
    SequenceUpdate,
    ShareCores,
    StartServing,
    Step,
    StepStats,
    Stop,
    ToWorker,
)
from workers.protocol.specs import EchoSpec, ServeSpec

logger = logging.getLogger(__name__)

EXIT_LOAD_FAILED = 1
# Reading the resident size costs about 50 us, a quarter of a fast step.
_MEMORY_REFRESH_S = 1.0
_PROGRESS_INTERVAL_S = 0.1
_ECHO_MAX_MODEL_LEN = 4096
# Of weights. A thread with less to read in a step computes for microseconds between two meetings with the others: that
# gains nothing alone, and beside other processes every meeting waits for them. The embedded model has 1.6 MB.
BYTES_PER_THREAD = 16 * 2**20


def main(sock: socket.socket, faults: Faults = NO_FAULTS) -> int:
    """Serve over this socket until `Stop` or its end. Returns the exit status of the process."""
    channel: SocketChannel[ToWorker] = SocketChannel(sock, ToWorker)
    try:
        return _serve(channel, faults)
    except ConnectionError:
        # The front end is gone, and with it everyone who could read an answer.
        return 0


def _serve(channel: SocketChannel[ToWorker], faults: Faults) -> int:
    message = channel.receive()
    if message is None or isinstance(message, Stop):
        return 0
    if not isinstance(message, StartServing):
        raise ProtocolError(f"the first message was {type(message).__name__}, not StartServing")
    spec = message.spec
    # what torch takes by itself: the physical cores that this process may run on
    num_cores = torch.get_num_threads()
    opened = attempt(lambda: _open(spec, LoadReporter(channel), faults), what=f"loading {spec.variant}")
    if isinstance(opened, Failure):
        channel.send(Failed(code=opened.code, message=opened.message))
        return EXIT_LOAD_FAILED
    engine, info = opened
    num_wanted = spec.num_threads or min(num_cores, max(1, info.weight_bytes // BYTES_PER_THREAD))
    torch.set_num_threads(num_wanted)
    threads = Threads(num_cores=num_cores, num_wanted=num_wanted)
    # What the load has created stays; without this each full collection walks all of it, in the middle of a step.
    gc.collect()
    gc.freeze()
    channel.send(Ready(info=info))
    logger.info("ready: %s on %s, lane %s", spec.variant, info.device, info.lane)
    ServingLoop(channel, engine, torch.device(info.device), threads).run()
    return 0


class LoadReporter:
    """Tells the front end how far a load is. These frames are the heartbeat until `Ready`."""

    def __init__(self, channel: SocketChannel[ToWorker]) -> None:
        self._channel = channel
        self._sent_at_s = 0.0
        self._bytes_total = 0

    def reading(self, bytes_done: int, bytes_total: int) -> None:
        """Weight bytes read so far; ten frames a second at most, the last one always."""
        now_s = time.monotonic()
        if bytes_done < bytes_total and now_s - self._sent_at_s < _PROGRESS_INTERVAL_S:
            return
        self._sent_at_s = now_s
        self._bytes_total = bytes_total
        self._channel.send(Loading(phase="reading", bytes_done=bytes_done, bytes_total=bytes_total))

    def phase(self, name: str) -> None:
        """Enter a phase other than reading: building, proving or allocating."""
        self._channel.send(Loading(phase=name, bytes_done=self._bytes_total, bytes_total=self._bytes_total))


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """How many threads compute. num_wanted: alone; num_cores: of the machine, for all workers together."""

    num_cores: int
    num_wanted: int

    def share(self, num_sharing: int) -> int:
        """Threads of one of num_sharing workers.

        Threads of a step wait for each other where the work joins. With more of them than cores a step waits for one
        that the kernel has set aside, many times longer than it computes (benchmarks/side_by_side.py).
        """
        return min(self.num_wanted, max(1, self.num_cores // num_sharing))


class ServingLoop:
    """Receive, step, emit."""

    def __init__(
        self, channel: SocketChannel[ToWorker], engine: Engine, device: torch.device, threads: Threads
    ) -> None:
        self._channel = channel
        self._engine = engine
        self._device = device
        self._threads = threads
        self._num_threads = threads.num_wanted
        self._step = 0
        self._measure_memory(time.monotonic())

    def run(self) -> None:
        """Until `Stop` or the end of the socket."""
        while self._receive():
            self._emit(*self._engine.step())

    def _receive(self) -> bool:
        """Take in what has arrived; wait only if there is nothing to do. False = leave."""
        while self._engine.is_idle:
            message = self._channel.receive()
            if message is None or not self._handle(message):
                return False
        messages, is_open = self._channel.receive_available()
        return all(self._handle(message) for message in messages) and is_open

    def _handle(self, message: ToWorker) -> bool:
        """Pass one message on to the engine. False = leave."""
        match message:
            case Generate():
                self._engine.add(message)
            case Cancel(request_id=request_id):
                self._engine.cancel(request_id)
            case ShareCores(num_sharing=num_sharing):
                self._num_threads = self._threads.share(num_sharing)
                torch.set_num_threads(self._num_threads)
            case Stop():
                return False
            case StartServing():
                raise ProtocolError("a second StartServing; a worker serves one variant")
        return True

    def _emit(self, updates: list[SequenceUpdate], stats: StepStats) -> None:
        """One frame per step. After the last sequence it reports zero running, and then there is silence."""
        self._step += 1
        now_s = time.monotonic()
        if now_s - self._measured_at_s >= _MEMORY_REFRESH_S:
            self._measure_memory(now_s)
        stats = msgspec.structs.replace(
            stats,
            process_bytes=self._process_bytes,
            peak_bytes=self._peak_bytes,
            num_threads=self._num_threads,
        )
        self._channel.send(Step(step=self._step, updates=updates, stats=stats))

    def _measure_memory(self, now_s: float) -> None:
        self._measured_at_s = now_s
        self._process_bytes = memory_used_bytes(self._device)
        self._peak_bytes = memory_peak_bytes(self._device)


def _open(spec: ServeSpec, reporter: LoadReporter, faults: Faults) -> tuple[Engine, ModelInfo]:
    """Load what the spec asks for and put an engine around it."""
    started_s = time.monotonic()
    faults.hit("worker.load")
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    if spec.echo is not None:
        engine, info = _open_echo(spec, spec.echo, faults)
    else:
        # Here and not above: it imports transformers.
        from workers.opening import open_model

        engine, info = open_model(spec, reporter.reading, reporter.phase, faults)
    return engine, msgspec.structs.replace(
        info, load_s=time.monotonic() - started_s, process_bytes=memory_used_bytes(torch.device(info.device))
    )


def _open_echo(spec: ServeSpec, echo: EchoSpec, faults: Faults) -> tuple[Engine, ModelInfo]:
    device = resolve_device("cpu")
    max_model_len = spec.max_model_len or _ECHO_MAX_MODEL_LEN
    num_pages = spec.max_num_seqs * -(-max_model_len // PAGE_SIZE)
    limits = EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        eos_token_ids=frozenset() if echo.ends_with is None else frozenset({echo.ends_with}),
    )
    engine = Engine(EchoRunner(echo, num_pages=num_pages), limits, faults, tokenizer_path=spec.tokenizer_path)
    info = ModelInfo(
        architecture="Echo",
        device=str(device),
        device_name=device_name(device),
        dtype="fp32",
        format="fp32",
        lane="echo",
        lane_reason="a stand-in that repeats the prompt, for load tests",
        vocab_size=echo.vocab_size,
        max_model_len=engine.max_model_len,
        eos_token_ids=sorted(limits.eos_token_ids),
        num_parameters=0,
        weight_bytes=0,
        kv_cache_bytes=0,
        kv_cache_tokens=num_pages * PAGE_SIZE,
        process_bytes=0,
        load_s=0.0,
    )
    return engine, info
