"""One variant's serving life: load, crash, restart, unload. The one place that moves a variant's state."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from app.core.pulse import Pulse
from app.core.variants import IDLE, VariantState, move
from app.errors import ApiError, Conflict, Unavailable, WorkerCrashed, from_worker
from app.supervisor.restart import Backoff
from app.supervisor.stream import WorkerGone
from app.supervisor.supervisor import Supervisor
from app.supervisor.worker import LoadFailed, Worker
from workers.protocol.messages import ModelInfo
from workers.protocol.specs import ServeSpec

logger = logging.getLogger(__name__)


class UnloadCause(StrEnum):
    """Who wanted a variant to go: somebody by name, its own idleness, or another one that needed the room."""

    ASKED = "asked"
    IDLE = "idle"
    EVICTED = "evicted"


def quarantined(name: str, reason: str | None) -> Conflict:
    """The error for whoever wants to use a variant that is not good enough."""
    return Conflict(
        f"Variant '{name}' is quarantined and is not served: {reason}. Delete it, or make it another way.",
        code="variant_quarantined",
    )


def dismissed(name: str) -> Unavailable:
    """The error for whoever waited for a variant that was unloaded by name meanwhile."""
    return Unavailable(
        f"Variant '{name}' was unloaded while this request waited for it.", retry_after_s=5, code="model_unloading"
    )


class ServingLife:
    """The state of one variant and the task that keeps a worker behind it while it is wanted.

    reason: why it is failed or restarting. error: what a failed load tells its client. is_required: /readyz waits
    for it: it was asked for at the start, or it has been ready and nobody has unloaded it since. num_users: requests
    that need it, those that wait for it too; used_at_s: when the last one ended, or the load, CLOCK_MONOTONIC seconds.
    num_dismissals: how often somebody has asked that it be unloaded. unload_cause: set while it is being unloaded.
    """

    def __init__(
        self, variant_id: str, supervisor: Supervisor, pulse: Pulse, quarantine_reason: str | None = None
    ) -> None:
        self.variant_id = variant_id
        self.state = VariantState.REGISTERED if quarantine_reason is None else VariantState.QUARANTINED
        self.reason: str | None = quarantine_reason
        self.error: ApiError | None = None
        self.spec: ServeSpec | None = None
        self.worker: Worker | None = None
        self.info: ModelInfo | None = None
        self.restarts = 0
        self.is_required = False
        self.num_users = 0
        self.used_at_s = time.monotonic()
        self.num_dismissals = 0
        self.unload_cause: UnloadCause | None = None
        self._supervisor = supervisor
        self._pulse = pulse
        self._life: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._unloading: asyncio.Task[None] | None = None

    def load(self, spec: ServeSpec) -> None:
        """registered or failed -> loading; the worker starts in the background."""
        self._move(VariantState.LOADING)
        self.spec = spec
        self.reason = self.error = None
        self.restarts = 0
        self._life = asyncio.get_running_loop().create_task(self._keep_serving(spec))

    async def unload(self, drain_s: float) -> None:
        """Any loaded state -> unloading -> registered; returns when the process is gone. Callers share one unload."""
        unloading = self.begin_unload(drain_s, UnloadCause.ASKED)
        if unloading is not None:
            await asyncio.shield(unloading)

    def begin_unload(self, drain_s: float, cause: UnloadCause) -> "asyncio.Task[None] | None":
        """As `unload`, begun before anything else can happen; the task that ends it, None if nothing is loaded."""
        if cause is UnloadCause.ASKED:
            self.num_dismissals += 1
            self._pulse.beat()
        if self.state in (VariantState.REGISTERED, VariantState.QUARANTINED):
            return None
        if self.unload_cause is not UnloadCause.ASKED:
            self.unload_cause = cause
        if self._unloading is None:
            self._move(VariantState.UNLOADING)
            self._unloading = asyncio.get_running_loop().create_task(self._unload(drain_s))
        return self._unloading

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Count one request that needs this variant."""
        self.num_users += 1
        try:
            yield
        finally:
            self.num_users -= 1
            self.used_at_s = time.monotonic()
            if not self.num_users:
                self._pulse.beat()

    async def settle(self, timeout_s: float | None = None) -> None:
        """Wait until the variant is neither loading, restarting nor unloading. Raises TimeoutError."""
        passing = (VariantState.LOADING, VariantState.RESTARTING, VariantState.UNLOADING)
        async with asyncio.timeout(timeout_s):
            while self.state in passing:
                await self._changed.wait()

    async def wait_serving(self, timeout_s: float | None) -> Worker:
        """The worker, as soon as requests can go to it. Raises ApiError when that will not be, or not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_serving:
                    if self.state in (*IDLE, VariantState.UNLOADING):
                        raise self._unready()
                    await self._changed.wait()
        except TimeoutError:
            raise self._unready() from None
        return self.require_ready()

    @property
    def is_serving(self) -> bool:
        """True if requests can go to the worker now."""
        return self.state is VariantState.READY and self.worker is not None and self.worker.is_ready

    @property
    def is_idle(self) -> bool:
        """True if it is loaded and no request needs it."""
        return self.state is VariantState.READY and not self.num_users

    @property
    def process_bytes(self) -> int | None:
        """What the worker holds: of its newest step, or as it was after the load. None while nothing is loaded."""
        if self.worker is None or self.info is None:
            return None
        return self.worker.stats.process_bytes or self.info.process_bytes

    def require_ready(self) -> Worker:
        """The worker, if requests can go to it now; else the ApiError that says what to do."""
        if self.is_serving and self.worker is not None:
            return self.worker
        raise self._unready()

    def _unready(self) -> ApiError:
        name = self.variant_id
        match self.state:
            case VariantState.FAILED:
                return WorkerCrashed(
                    f"Variant '{name}' has failed: {self.reason}. POST /v1/load loads it again.", code="worker_crashed"
                )
            case VariantState.QUARANTINED:
                return quarantined(name, self.reason)
            case VariantState.REGISTERED:
                return Unavailable(
                    f'Variant \'{name}\' is not loaded; POST /v1/load {{"model": "{name}"}} loads it.',
                    retry_after_s=5,
                    code="model_not_loaded",
                )
            case VariantState.UNLOADING:
                return Unavailable(f"Variant '{name}' is being unloaded.", retry_after_s=5, code="model_unloading")
        return Unavailable(
            f"Variant '{name}' is {self._phase}; wait for GET /v1/variants/{name} to say ready.", retry_after_s=2
        )

    @property
    def _phase(self) -> str:
        return "loading" if self.state is VariantState.LOADING else "restarting"

    async def _keep_serving(self, spec: ServeSpec) -> None:
        backoff = Backoff(self._supervisor.watch.restart)
        while True:
            try:
                worker = self.worker = await self._supervisor.start_worker(spec)
                self._become_ready(await worker.wait_ready())
                await worker.wait_gone()
                crash = worker.gone_reason
            except LoadFailed as failed:
                await worker.kill()
                self._fail(failed.message, from_worker(failed.code, failed.message))
                return
            except WorkerGone as gone:
                crash = gone.reason
            except OSError as error:
                crash = f"no process could be started: {error.strerror}"
            delay_s = backoff.next_delay_s()
            # A first load is not tried again: most likely it ran out of memory, and its client waits for an answer.
            if delay_s is None or self.state is VariantState.LOADING:
                self._fail(crash, WorkerCrashed(f"The worker of '{self.variant_id}' died while loading: {crash}."))
                return
            if self.state is VariantState.READY:
                self._move(VariantState.RESTARTING)
            self.reason = crash
            await asyncio.sleep(delay_s)
            self.restarts += 1

    async def _unload(self, drain_s: float) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life})
            self._life = None
        if self.worker is not None:
            started_s = time.monotonic()
            await self.worker.stop(drain_s)
            logger.info("worker is gone after %.1f s", time.monotonic() - started_s, extra={"variant": self.variant_id})
        self.worker = self.info = self.spec = self.error = self.reason = self.unload_cause = None
        self.is_required = False
        self._unloading = None
        self._move(VariantState.REGISTERED)

    def _become_ready(self, info: ModelInfo) -> None:
        self.info = info
        self.reason = self.error = None
        self.is_required = True
        self.used_at_s = time.monotonic()
        self._move(VariantState.READY)

    def _fail(self, reason: str, error: ApiError) -> None:
        self.reason, self.error = reason, error
        self.worker = self.info = None
        self._move(VariantState.FAILED)

    def _move(self, then: VariantState) -> None:
        before, self.state = self.state, move(self.state, then)
        logger.info("%s -> %s", before, then, extra={"variant": self.variant_id})
        self._changed.set()
        self._changed = asyncio.Event()
        self._pulse.beat()
