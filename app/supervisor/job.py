"""One job process as the front end sees it: a spec in, progress on the way, one result or one failure out."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from app.supervisor.child import Child
from app.supervisor.stream import WorkerGone
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import Cancel, Failed, FromJob, JobDone, JobProgress, StartJob
from workers.protocol.specs import InspectSpec, JobSpec

logger = logging.getLogger(__name__)

CANCEL_GRACE_S: Final = 5.0
STDERR_LINES_LOGGED: Final = 40

ProgressObserver = Callable[[JobProgress], None]


class JobFailed(Exception):
    """The job's process said why it gave up."""

    def __init__(self, code: WorkerErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class JobProcess:
    """One process that runs one spec and exits."""

    def __init__(self, label: str, on_progress: ProgressObserver, on_end: Callable[[], None]) -> None:
        self.label = label
        self.last_message_at_s = time.monotonic()
        self._on_progress = on_progress
        self._on_end = on_end
        self._child: Child[FromJob] = Child(label, self._receive, self._end)
        self._result: asyncio.Future[JobDone] = asyncio.get_running_loop().create_future()
        self._result.add_done_callback(_retrieve)
        self._was_stopped = False
        self._killing: asyncio.Task[None] | None = None

    async def start(self, spec: JobSpec, *, faults: str = "") -> None:
        """Fork the process and send it its spec."""
        needs_hub = isinstance(spec, InspectSpec) and spec.hub_id is not None
        await self._child.start("job", FromJob, faults=faults, needs_hub=needs_hub)
        self._child.send(StartJob(spec=spec))

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._child.pid

    @property
    def is_gone(self) -> bool:
        """True once the process has been reaped."""
        return self._child.is_gone

    @property
    def is_ending(self) -> bool:
        """True once it has been told to stop, or killed."""
        return self._was_stopped or self._killing is not None

    async def result(self) -> JobDone:
        """The result, after the process is gone. Raises JobFailed, or WorkerGone if it died without a word."""
        await self._child.wait()
        return self._result.result()

    async def cancel(self, grace_s: float = CANCEL_GRACE_S) -> None:
        """Ask it to stop, and kill it if it has not within grace_s; returns when it is gone."""
        self._was_stopped = True
        self._child.send(Cancel(request_id=""))
        if not await self._child.gone_within(grace_s):
            await self._child.terminate(0)

    def condemn(self, reason: str) -> None:
        """A job without a sign of life: kill it; `result` raises WorkerGone with this reason."""
        logger.error("job process is hung: %s", reason, extra={"child": self.label, "pid": self.pid})
        if not self._result.done():
            self._result.set_exception(WorkerGone(reason))
        self._killing = asyncio.get_running_loop().create_task(self._child.terminate())

    def _receive(self, message: FromJob) -> None:
        self.last_message_at_s = time.monotonic()
        match message:
            case JobProgress():
                self._on_progress(message)
            case JobDone():
                if not self._result.done():
                    self._result.set_result(message)
            case Failed():
                if not self._result.done():
                    self._result.set_exception(JobFailed(message.code, message.message))

    def _end(self, reason: str) -> None:
        self._on_end()
        if self._result.done():
            return
        if not self._was_stopped:
            stderr = self._child.stderr.last_lines(STDERR_LINES_LOGGED)
            logger.error("job process died: %s; its last words:\n%s", reason, stderr, extra={"child": self.label})
        self._result.set_exception(WorkerGone(reason, is_deliberate=self._was_stopped))


def _retrieve(result: "asyncio.Future[JobDone]") -> None:
    """Mark the exception as seen: whoever cancelled the job does not ask for its result."""
    if not result.cancelled():
        result.exception()
