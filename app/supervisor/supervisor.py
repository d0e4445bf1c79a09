"""Every child of this server: started here, watched here, and gone when the server is."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from app.supervisor.job import JobProcess, ProgressObserver
from app.supervisor.restart import RestartPolicy
from app.supervisor.worker import StepObserver, Worker, WorkerObserver, WorkerObservers
from workers.protocol.messages import Step
from workers.protocol.specs import JobSpec, ServeSpec

logger = logging.getLogger(__name__)

C = TypeVar("C", Worker, JobProcess)


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Limits in seconds after which a silent child is killed, and how children are restarted.

    faults: what children get as SLIMSERVE_FAULTS.
    """

    step_timeout_s: float
    load_timeout_s: float
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    faults: str = ""

    @property
    def tick_s(self) -> float:
        """Seconds between two looks: a hang is found within a second and a quarter of its limit."""
        return min(1.0, min(self.step_timeout_s, self.load_timeout_s) / 4)


class Supervisor:
    """Starts children and looks at each of them once per tick."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.ticked_at_s = time.monotonic()
        self._ready_observers: list[WorkerObserver] = []
        self._step_observers: list[StepObserver] = []
        self._end_observers: list[WorkerObserver] = []
        self._workers: list[Worker] = []
        self._jobs: list[JobProcess] = []
        self._ticking: asyncio.Task[None] | None = None

    def observe_readiness(self, observer: WorkerObserver) -> None:
        """Call observer(variant_id) whenever a worker can take requests, before it gets any."""
        self._ready_observers.append(observer)

    def observe_steps(self, observer: StepObserver) -> None:
        """Call observer(variant_id, step) for every step of every worker, on the event loop."""
        self._step_observers.append(observer)

    def observe_ends(self, observer: WorkerObserver) -> None:
        """Call observer(variant_id) whenever a worker has gone: after its last step, before its successor starts."""
        self._end_observers.append(observer)

    async def start(self) -> None:
        """Begin to watch."""
        self._ticking = asyncio.get_running_loop().create_task(self._tick_forever())

    async def stop(self) -> None:
        """End every child that is left; returns when all are gone."""
        if self._ticking is not None:
            self._ticking.cancel()
        await asyncio.gather(*(worker.kill() for worker in self._workers), *(job.cancel() for job in self._jobs))

    async def start_worker(self, spec: ServeSpec) -> Worker:
        """Fork a serving process for this spec; it is loading when this returns."""
        observers = WorkerObservers(
            on_ready=self._is_ready, on_step=self._step, on_activity=self._share_cores, on_end=self._ended
        )
        worker = Worker(spec.variant, observers)
        await worker.start(spec, faults=self.watch.faults)
        self._workers = [*_alive(self._workers), worker]
        return worker

    async def start_job(self, label: str, spec: JobSpec, on_progress: ProgressObserver) -> JobProcess:
        """Fork a job process for this spec; await its `result()`."""
        job = JobProcess(label, on_progress, self._share_cores)
        await job.start(spec, faults=self.watch.faults)
        self._jobs = [*_alive(self._jobs), job]
        self._share_cores()
        return job

    def _is_ready(self, variant_id: str) -> None:
        for observer in self._ready_observers:
            observer(variant_id)

    def _step(self, variant_id: str, step: Step) -> None:
        for observer in self._step_observers:
            observer(variant_id, step)

    def _ended(self, variant_id: str) -> None:
        for observer in self._end_observers:
            observer(variant_id)
        self._share_cores()

    def _share_cores(self) -> None:
        """Tell every worker that computes on the processor how many processes do; jobs do as long as they live."""
        busy = [worker for worker in _alive(self._workers) if worker.computes_on_cpu]
        num_sharing = len(busy) + len(_alive(self._jobs))
        for worker in busy:
            worker.share_cores(num_sharing)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self.watch.tick_s)
            late_s = time.monotonic() - self.ticked_at_s - self.watch.tick_s
            self.ticked_at_s = time.monotonic()
            # After a stall of our own, frames that arrived meanwhile are still unread: judge at the next tick.
            if late_s < self.watch.tick_s:
                self._tick()

    def _tick(self) -> None:
        now_s = time.monotonic()
        for worker in _alive(self._workers):
            limits = self.watch
            reason = worker.hang_reason(
                now_s, step_timeout_s=limits.step_timeout_s, load_timeout_s=limits.load_timeout_s
            )
            if reason is not None:
                worker.condemn(reason)
        for job in _alive(self._jobs):
            quiet_s = now_s - job.last_message_at_s
            if quiet_s > self.watch.load_timeout_s and not job.is_ending:
                job.condemn(f"no progress of the job for {quiet_s:.0f} s")


def _alive(children: Iterable[C]) -> list[C]:
    return [child for child in children if not child.is_gone]
