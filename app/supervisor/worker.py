"""One serving process as the front end sees it: loading, ready, gone; and who waits for which sequence."""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.supervisor.child import TERM_GRACE_S, Child
from app.supervisor.stream import Stream, WorkerGone
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import (
    Cancel,
    Failed,
    FinishReason,
    FromWorker,
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
)
from workers.protocol.specs import ServeSpec

logger = logging.getLogger(__name__)

STACK_DUMP_S: Final = 0.3
STDERR_LINES_LOGGED: Final = 40

StepObserver = Callable[[str, Step], None]
# Called with the id of the variant whose worker it is.
WorkerObserver = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerObservers:
    """Who is told of a worker: that it is ready, of each step, that it began or ended to compute, that it is gone."""

    on_ready: WorkerObserver
    on_step: StepObserver
    on_activity: Callable[[], None]
    on_end: WorkerObserver


class LoadFailed(Exception):
    """The worker said why it cannot serve this variant; trying again unchanged fails again."""

    def __init__(self, code: WorkerErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Worker:
    """One process that serves one variant, from its start to its end. A restart is a new Worker."""

    def __init__(self, variant_id: str, observers: WorkerObservers) -> None:
        self.variant_id = variant_id
        self.stats = StepStats()
        self.loading: Loading | None = None
        self.last_step_at_s = time.monotonic()
        self.gone_reason = ""
        self._observers = observers
        self._num_sharing = 1
        self._streams: dict[str, Stream] = {}
        self._child: Child[FromWorker] = Child(f"worker {variant_id}", self._receive, self._end)
        self._ready: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(_retrieve)
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._condemned: str | None = None
        self._is_stopping = False
        self._killing: asyncio.Task[None] | None = None

    async def start(self, spec: ServeSpec, *, faults: str = "") -> None:
        """Fork the process and send it its first frame."""
        await self._child.start("serve", FromWorker, faults=faults, needs_hub=False)
        self._child.send(StartServing(spec=spec))

    @property
    def info(self) -> ModelInfo:
        """What the process reported when it was ready. Raises WorkerGone before that."""
        if not self._ready.done() or self._ready.exception() is not None:
            raise WorkerGone("the worker is not ready")
        return self._ready.result()

    @property
    def is_ready(self) -> bool:
        """True while `submit` can succeed."""
        return self._ready.done() and self._ready.exception() is None and not self._is_ending

    @property
    def computes_on_cpu(self) -> bool:
        """True while it has sequences and the processor is its device."""
        return bool(self._streams) and self.is_ready and self.info.device == "cpu"

    @property
    def num_streams(self) -> int:
        """Sequences that have not ended."""
        return len(self._streams)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._child.pid

    @property
    def is_gone(self) -> bool:
        """True once the process has been reaped."""
        return self._child.is_gone

    async def wait_ready(self) -> ModelInfo:
        """Until the model is served. Raises LoadFailed if the worker gave a reason, WorkerGone if it just died."""
        return await asyncio.shield(self._ready)

    async def wait_gone(self) -> None:
        """Until the process has been reaped."""
        await self._child.wait()

    def submit(self, generate: Generate) -> Stream:
        """Send one sequence to the engine. Raises WorkerGone if the worker cannot take it."""
        if not self.is_ready:
            raise WorkerGone(self._condemned or self.gone_reason or "the worker is not ready")
        was_idle = not self._streams
        stream = Stream(generate.request_id)
        self._streams[generate.request_id] = stream
        if was_idle:
            self.last_step_at_s = time.monotonic()
            self._is_idle.clear()
            self._observers.on_activity()
        self._child.send(generate)
        return stream

    def share_cores(self, num_sharing: int) -> None:
        """Tell the engine how many processes compute on the processor now."""
        if num_sharing != self._num_sharing:
            self._num_sharing = num_sharing
            self._child.send(ShareCores(num_sharing=num_sharing))

    def cancel(self, request_id: str) -> None:
        """Forget a sequence: its stream ends as cancelled now, the engine stops at its next step."""
        stream = self._streams.get(request_id)
        if stream is None:
            return
        self._child.send(Cancel(request_id=request_id))
        stream.put(SequenceUpdate(request_id=request_id, finish_reason=FinishReason.CANCELLED))
        self._forget(request_id)

    def hang_reason(self, now_s: float, *, step_timeout_s: float, load_timeout_s: float) -> str | None:
        """Why this worker counts as hung at now_s (CLOCK_MONOTONIC), or None."""
        if self._is_ending:
            return None
        quiet_s = now_s - self.last_step_at_s
        if not self._ready.done() and quiet_s > load_timeout_s:
            return f"no progress of the load for {quiet_s:.0f} s"
        if self._streams and quiet_s > step_timeout_s:
            return f"no step for {quiet_s:.0f} s while requests were running"
        return None

    def condemn(self, reason: str) -> None:
        """A hung worker: its streams end now; its Python stacks go to the log, and it is killed."""
        logger.error("worker is hung: %s", reason, extra={"variant": self.variant_id, "pid": self.pid})
        self._condemned = reason
        self._fail_streams(WorkerGone(reason))
        self._killing = asyncio.get_running_loop().create_task(self._kill_hung())

    async def stop(self, drain_s: float) -> None:
        """Let running sequences end for at most drain_s, then end the process; returns when it is gone."""
        if self._streams:
            try:
                await asyncio.wait_for(self._is_idle.wait(), drain_s)
            except TimeoutError:
                logger.warning("%d sequences were cut off", len(self._streams), extra={"variant": self.variant_id})
        await self.kill()

    async def kill(self) -> None:
        """End the process without waiting for its sequences: Stop, SIGTERM, SIGKILL."""
        self._is_stopping = True
        self._fail_streams(WorkerGone("the variant was unloaded", is_deliberate=True))
        is_serving = self._ready.done() and self._condemned is None
        if is_serving:
            self._child.expect_exit()
            self._child.send(Stop())
        if not is_serving or not await self._child.gone_within(TERM_GRACE_S):
            await self._child.terminate()

    @property
    def _is_ending(self) -> bool:
        return self._child.is_gone or self._is_stopping or self._condemned is not None

    def _receive(self, message: FromWorker) -> None:
        self.last_step_at_s = time.monotonic()
        match message:
            case Step():
                self._receive_step(message)
            case Loading():
                self.loading = message
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(message.info)
                    self._observers.on_ready(self.variant_id)
            case Failed():
                if not self._ready.done():
                    self._ready.set_exception(LoadFailed(message.code, message.message))

    def _receive_step(self, step: Step) -> None:
        self.stats = step.stats
        for update in step.updates:
            stream = self._streams.get(update.request_id)
            if stream is None:
                continue
            stream.put(update)
            if update.finish_reason is not None:
                self._forget(update.request_id)
        self._observers.on_step(self.variant_id, step)

    def _forget(self, request_id: str) -> None:
        del self._streams[request_id]
        if not self._streams:
            self._is_idle.set()
            self._observers.on_activity()

    def _fail_streams(self, gone: WorkerGone) -> None:
        for stream in self._streams.values():
            stream.fail(gone)
        self._streams.clear()
        self._is_idle.set()

    def _end(self, reason: str) -> None:
        """The process has been reaped; reason says how it ended."""
        self.gone_reason = self._condemned or reason
        # whoever asks before a restart must not be told of sequences that died with it
        self.stats = StepStats()
        self._observers.on_end(self.variant_id)
        gone = WorkerGone(self.gone_reason, is_deliberate=self._is_stopping)
        if not self._is_stopping and not self._load_was_refused:
            fields = {"variant": self.variant_id, "pid": self.pid, "streams": len(self._streams)}
            stderr = self._child.stderr.last_lines(STDERR_LINES_LOGGED)
            logger.error("worker died: %s; its last words:\n%s", self.gone_reason, stderr, extra=fields)
        if not self._ready.done():
            self._ready.set_exception(gone)
        self._fail_streams(gone)

    @property
    def _load_was_refused(self) -> bool:
        return self._ready.done() and isinstance(self._ready.exception(), LoadFailed)

    async def _kill_hung(self) -> None:
        self._child.signal(signal.SIGUSR1)
        await asyncio.sleep(STACK_DUMP_S)
        await self._child.terminate()


def _retrieve(ready: "asyncio.Future[ModelInfo]") -> None:
    """Mark the exception as seen: nobody may be waiting for this load."""
    if not ready.cancelled():
        ready.exception()
