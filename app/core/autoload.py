"""A request for a variant that is not loaded: one load for all who wait for it, and each waits only so long."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from app.core.catalog import Catalog
from app.core.entries import Entry
from app.core.load_request import LoadRequest
from app.core.residency import Residency
from app.core.serving import UnloadCause, dismissed
from app.core.variants import Served, VariantState
from app.errors import ApiError, DoesNotFit, NoRoomNow, Unavailable
from app.metrics.serving import ServingMetrics
from app.settings import Settings

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER_S: Final = 120
# Where no load of the variant has been timed yet.
_UNKNOWN_LOAD_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class _Coming:
    """A variant that is on its way for requests. wanted_until_s: when the last of them will have given up."""

    task: asyncio.Task[None]
    started_s: float = field(default_factory=time.monotonic)
    wanted_until_s: float = 0.0
    blocked: NoRoomNow | None = None


class Autoload:
    """Gives requests a variant that serves, and loads it first where the settings allow that."""

    def __init__(self, settings: Settings, catalog: Catalog, residency: Residency, metrics: ServingMetrics) -> None:
        self._is_enabled = settings.autoload
        self._wait_s = min(settings.autoload_wait_s, settings.request_timeout_s)
        self._catalog = catalog
        self._residency = residency
        self._metrics = metrics
        self._coming: dict[str, _Coming] = {}

    async def find(self, model: str) -> str:
        """The id of the variant that a request means; nothing is loaded yet.

        A base that nobody has loaded so far gets its default cast. Raises ApiError: unknown, being downloaded.
        """
        self._catalog.refuse_unregistered(model)
        base = self._catalog.bases.get(model.removesuffix("/auto"))
        if self._is_enabled and base is not None and self._catalog.of_base(base.name) is None:
            dtype, _ = self._catalog.cast_meant(base, LoadRequest(model=base.name))
            await self._catalog.cast(base, dtype)
        return self._catalog.entry(model).row.id

    @asynccontextmanager
    async def serving(self, variant_id: str) -> AsyncIterator[Served]:
        """The variant while a request needs it: as long as the block runs, it is neither evicted nor idle.

        Raises ApiError: not loaded and not to be loaded, a load that failed, no room, or not in time.
        """
        while True:
            entry = self._catalog.entry(variant_id)
            # counted while it waits too, so that nobody evicts what it waits for
            with entry.life.in_use():
                await self._bring(entry)
                # not if a job has published another of this id while this one was waited for
                if self._catalog.find(variant_id) is entry or self._catalog.find(variant_id) is None:
                    yield self._catalog.acquire(variant_id)
                    return

    def drain(self) -> None:
        """Begin no load more; who waits is told that the server stops. May be called in a signal handler."""
        self._is_enabled = False
        for coming in self._coming.values():
            coming.task.get_loop().call_soon_threadsafe(coming.task.cancel)

    async def stop(self) -> None:
        """Drain; returns when nothing is waited for any more."""
        self.drain()
        await asyncio.gather(*(coming.task for coming in self._coming.values()), return_exceptions=True)

    async def _bring(self, entry: Entry) -> None:
        """Wait until the variant serves."""
        life, name = entry.life, entry.row.id
        if life.is_serving or not self._may_come(entry):
            return
        coming = self._coming.get(name)
        if coming is None:
            coming = _Coming(task=asyncio.get_running_loop().create_task(self._load(name)))
            self._coming[name] = coming
            coming.task.add_done_callback(lambda task: self._ended(name, task))
        coming.wanted_until_s = max(coming.wanted_until_s, time.monotonic() + self._wait_s)
        # the load is everybody's: who leaves ends only the own wait
        done, _ = await asyncio.wait({coming.task}, timeout=self._wait_s)
        if not done:
            raise self._not_yet(entry, coming)
        if coming.task.cancelled():
            raise Unavailable("The server is stopping.", retry_after_s=30, code="draining")
        coming.task.result()

    def _may_come(self, entry: Entry) -> bool:
        """Whether waiting can help; if not, the variant's state says what the client is told."""
        life = entry.life
        if not self._is_enabled or entry.is_leaving:
            return False
        match life.state:
            case VariantState.QUARANTINED:
                return False
            case VariantState.FAILED:
                # What is broken stays so until somebody looks at it; what had no room may have some now.
                return isinstance(life.error, DoesNotFit)
            case VariantState.UNLOADING:
                return life.unload_cause is not UnloadCause.ASKED
        return True

    async def _load(self, variant_id: str) -> None:
        """Load a variant and wait until it serves. Raises ApiError if that will not be."""
        life = self._catalog.entry(variant_id).life
        num_dismissals = life.num_dismissals
        has_begun = False
        try:
            while True:
                changed = self._catalog.pulse.next
                entry = self._catalog.entry(variant_id)
                if entry.life is life and life.num_dismissals != num_dismissals:
                    raise dismissed(variant_id)
                options = entry.options or LoadRequest(model=variant_id)
                coming = self._coming[variant_id]
                try:
                    has_begun = await self._residency.begin_load(entry, replace(options, evict=True))
                    break
                except NoRoomNow as error:
                    coming.blocked = error
                    await self._wait_for_room(changed, coming, entry)
            coming.blocked = None
            await self._until_serving(entry)
        except ApiError:
            if has_begun:
                self._metrics.autoloaded(variant_id, "failed")
            raise
        if has_begun:
            self._metrics.autoloaded(variant_id, "ready")

    async def _wait_for_room(self, changed: asyncio.Event, coming: _Coming, entry: Entry) -> None:
        """Until something has changed, or nobody waits any more: then it raises what the last one is told."""
        left_s = coming.wanted_until_s - time.monotonic()
        if left_s <= 0:
            raise self._not_yet(entry, coming)
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await changed.wait()

    async def _until_serving(self, entry: Entry) -> None:
        life = entry.life
        try:
            await life.wait_serving(None)
        except ApiError:
            if life.state is VariantState.FAILED and life.error is not None:
                raise life.error from None
            if life.state in (VariantState.UNLOADING, VariantState.REGISTERED):
                raise dismissed(entry.row.id) from None
            raise

    def _not_yet(self, entry: Entry, coming: _Coming) -> Unavailable:
        if coming.blocked is not None:
            return Unavailable(coming.blocked.message, retry_after_s=math.ceil(_UNKNOWN_LOAD_S))
        known_s = max((row.load_s for row in entry.measured.values()), default=_UNKNOWN_LOAD_S)
        left_s = known_s - (time.monotonic() - coming.started_s)
        name = entry.row.id
        return Unavailable(
            f"Variant '{name}' is being loaded; try again, or wait for GET /v1/variants/{name} to say ready.",
            retry_after_s=min(_MAX_RETRY_AFTER_S, max(1, math.ceil(left_s))),
        )

    def _ended(self, variant_id: str, task: "asyncio.Task[None]") -> None:
        del self._coming[variant_id]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ApiError):
            logger.error("autoload failed: %s", error.message, extra={"variant": variant_id})
