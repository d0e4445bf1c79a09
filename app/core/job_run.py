"""The processes of one attempt at a job: started one after another, any of them cancelled at any moment."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from app.core.neighbours import Neighbours
from app.core.residency import Residency
from app.settings import Settings
from app.store.bases import BaseRow
from app.supervisor.job import JobProcess
from app.supervisor.supervisor import Supervisor
from workers.protocol.messages import JobDone, JobProgress
from workers.protocol.specs import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job that runs now: its newest tick, or nothing yet."""

    id: str
    kind: str
    ratio: float = 0.0
    rss_bytes: int = 0
    eta_s: float | None = None


class RunCancelled(Exception):
    """The run was told to stop: by its client, or because the server stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTools:
    """What every run needs of its server."""

    settings: Settings
    supervisor: Supervisor
    residency: Residency
    neighbours: Neighbours
    on_progress: Callable[[JobProgress], None]


class JobRun:
    """What all kinds of jobs share. `cancel` ends it at any moment; what it wrote is the caller's to remove."""

    def __init__(self, job_id: str, kind: str, base: BaseRow, tools: RunTools) -> None:
        self.job_id = job_id
        self.kind = kind
        self.base = base
        self.ended = asyncio.Event()
        self._settings = tools.settings
        self._supervisor = tools.supervisor
        self._on_progress = tools.on_progress
        self._process: JobProcess | None = None
        self._is_cancelled = False

    async def cancel(self) -> None:
        """Stop as soon as possible: at the job's next unit, or after five seconds by force."""
        self._is_cancelled = True
        if self._process is not None:
            await self._process.cancel()

    async def run(self, spec: JobSpec) -> JobDone:
        """One process to its end. Raises RunCancelled, JobFailed, WorkerGone, or OSError."""
        self._check()
        self._process = await self._supervisor.start_job(f"job {self.job_id}", spec, self._on_progress)
        if self._is_cancelled:
            await self._process.cancel()
        try:
            return await self._process.result()
        finally:
            # Whatever a cancelled process still said, a cancelled run has no result.
            self._check()

    def _check(self) -> None:
        if self._is_cancelled:
            raise RunCancelled
