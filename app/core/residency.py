"""Which variants stay in memory: room for loads and guests, eviction and unloading of idle ones."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from app.core import fit
from app.core.catalog import Catalog
from app.core.entries import Entry
from app.core.guest import Guest
from app.core.load_request import LoadRequest
from app.core.room import Need, Resident, Room
from app.core.serving import UnloadCause, dismissed
from app.core.variants import IDLE, VariantState
from app.metrics.serving import ServingMetrics
from app.settings import Settings
from app.store import memory
from app.store.database import Store
from app.store.memory import MemoryRow

logger = logging.getLogger(__name__)

# A process that has ended has given its memory back; the kernel's count of it may follow a moment later.
_RETURN_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.05
# Resident bytes wander a little; a write to disk is not worth that.
_GROWTH_NOTED: Final = 1.02
_LOADING: Final = (VariantState.LOADING, VariantState.RESTARTING)


class Residency:
    """Begins loads that fit, or makes room for them; sees to it that idle variants go in time."""

    def __init__(self, settings: Settings, store: Store, catalog: Catalog, metrics: ServingMetrics) -> None:
        self._settings = settings
        self._store = store
        self._catalog = catalog
        self._metrics = metrics
        self._making_room = asyncio.Lock()
        self._guests: list[Guest] = []
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to unload what is idle and to note what is measured."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        """Unload nothing more by itself."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def begin_load(self, entry: Entry, request: LoadRequest) -> bool:
        """Start a worker if the variant needs one, after room has been made; True if it did.

        Raises ApiError as Catalog.needs_worker does, DoesNotFit, NoRoomNow if it would fit but for busy variants, and
        Unavailable if the variant was unloaded by name meanwhile.
        """
        life = entry.life
        num_dismissals = life.num_dismissals
        if life.state is VariantState.UNLOADING and life.unload_cause is not UnloadCause.ASKED:
            await life.settle()
        if not self._catalog.needs_worker(entry, request):
            return self._catalog.begin_load(entry, request)
        # one after the other, so that nobody takes the room that another has made
        async with self._making_room:
            if self._catalog.needs_worker(entry, request):
                await self._make_room(entry, request)
            if life.num_dismissals != num_dismissals:
                raise dismissed(entry.row.id)
            return self._catalog.begin_load(entry, request)

    @asynccontextmanager
    async def guest(self, name: str, entry: Entry, request: LoadRequest) -> AsyncIterator[Guest]:
        """Room for a worker beside the variant's own, made as for a load and counted until the block ends.

        The caller starts the worker, names it to the guest, and has ended it when the block ends. Raises DoesNotFit,
        and NoRoomNow if it would fit but for busy variants.
        """
        async with self._making_room:
            await self._make_room(entry, request)
            need = self.need(entry, request)
            guest = Guest(name=name, device=self.device(request, entry), expected_bytes=need.num_bytes)
            self._guests.append(guest)
        try:
            yield guest
        finally:
            self._guests.remove(guest)
            self._catalog.pulse.beat()

    def device(self, request: LoadRequest, entry: Entry | None = None) -> str:
        """Where a load would go; a stand-in computes nothing and stays on the CPU."""
        if entry is not None and entry.echo is not None:
            return "cpu"
        return fit.device_key(request.device or self._settings.device)

    def need(self, entry: Entry, request: LoadRequest) -> Need:
        """What a load of a variant with these options takes."""
        measured = entry.measured_bytes(request, self.device(request, entry))
        if measured is not None:
            return Need(num_bytes=measured, is_measured=True)
        return Need(num_bytes=entry.estimated_bytes(request.kv_cache_bytes), is_measured=False)

    def room(self, device: str) -> Room:
        """The memory of a device as it is now."""
        available_bytes = None if fit.is_cuda(device) else fit.available_bytes()
        residents: list[Resident] = []
        for entry in self._catalog.entries():
            if entry.life.state in IDLE or _device_of(entry) != device:
                continue
            resident = self._resident(entry)
            residents.append(resident)
            if available_bytes is not None and entry.life.state in _LOADING:
                available_bytes -= resident.held_bytes
        for guest in self._guests:
            if guest.device != device:
                continue
            residents.append(guest.resident())
            if available_bytes is not None and guest.is_loading:
                available_bytes -= guest.expected_bytes
        return Room(budget_bytes=self._settings.memory_bytes, available_bytes=available_bytes, residents=residents)

    def _idle_unload_s(self, entry: Entry) -> float:
        """Time without requests after which a variant is unloaded; 0 is never."""
        if entry.is_pinned:
            return 0.0
        asked = entry.options.idle_unload_s if entry.options is not None else None
        return self._settings.idle_unload_s if asked is None else asked

    def _may_evict(self, request: LoadRequest) -> bool:
        """Whether a load may unload idle variants: as it says, else if they would come back by themselves."""
        return self._settings.autoload if request.evict is None else request.evict

    def _resident(self, entry: Entry) -> Resident:
        life = entry.life
        held_bytes = life.process_bytes
        if held_bytes is None:
            held_bytes = self.need(entry, entry.options or LoadRequest(model=entry.row.id)).num_bytes
        returned_bytes = held_bytes
        if life.state not in _LOADING and life.worker is not None and _device_of(entry) == "cpu":
            returned_bytes = fit.private_bytes(life.worker.pid)
        return Resident(
            variant_id=entry.row.id,
            held_bytes=held_bytes,
            returned_bytes=returned_bytes,
            used_at_s=life.used_at_s,
            is_busy=not life.is_idle,
            is_pinned=entry.is_pinned,
        )

    async def _make_room(self, entry: Entry, request: LoadRequest) -> None:
        device, need = self.device(request, entry), self.need(entry, request)
        room = self.room(device)
        if room.fits(need.num_bytes):
            return
        may_evict = self._may_evict(request)
        victims = room.victims(need.num_bytes) if may_evict else None
        if victims is None:
            raise room.refusal(entry.row.id, need, may_evict=may_evict)
        await self._evict(victims, entry.row.id)
        until_s = time.monotonic() + _RETURN_S
        while not (room := self.room(device)).fits(need.num_bytes):
            if time.monotonic() > until_s:
                raise room.refusal(entry.row.id, need, may_evict=may_evict)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _evict(self, victims: Sequence[Resident], for_variant: str) -> None:
        unloading: list[asyncio.Task[None]] = []
        for victim in victims:
            entry = self._catalog.entry(victim.variant_id)
            logger.info("evicted for %s", for_variant, extra={"variant": victim.variant_id})
            self._metrics.evicted(victim.variant_id)
            task = entry.life.begin_unload(0, UnloadCause.EVICTED)
            if task is not None:
                unloading.append(task)
        await asyncio.wait(unloading)

    async def _watch(self) -> None:
        while True:
            changed = self._catalog.pulse.next
            await self._note_measured()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._unload_idle()):
                    await changed.wait()

    def _unload_idle(self) -> float | None:
        """Unload what has been idle for long enough; the seconds until the next one is due, None without one."""
        now_s = time.monotonic()
        next_s: float | None = None
        for entry in self._catalog.entries():
            limit_s = self._idle_unload_s(entry)
            if not limit_s or not entry.life.is_idle:
                continue
            left_s = entry.life.used_at_s + limit_s - now_s
            if left_s > 0:
                next_s = left_s if next_s is None else min(next_s, left_s)
                continue
            logger.info("idle for %.0f s", limit_s, extra={"variant": entry.row.id})
            self._metrics.unloaded_idle(entry.row.id)
            entry.life.begin_unload(0, UnloadCause.IDLE)
        return next_s

    async def _note_measured(self) -> None:
        for entry in self._catalog.entries():
            row = _newly_measured(entry)
            if row is None:
                continue
            entry.measured[row.device] = row
            if entry.base is not None:
                # a full disk, or the variant has been deleted meanwhile: the server goes on without that number
                try:
                    await self._store.run(memory.put, row)
                except sqlite3.Error as error:
                    logger.warning("what it holds was not stored: %s", error, extra={"variant": row.variant})


def _device_of(entry: Entry) -> str:
    """Where a variant is loaded, or being loaded."""
    life = entry.life
    if life.info is not None:
        return life.info.device
    if entry.echo is not None or life.spec is None:
        return "cpu"
    return fit.device_key(life.spec.device)


def _newly_measured(entry: Entry) -> MemoryRow | None:
    """What a loaded variant holds, if that is more than is known of it, or with other options."""
    life, options = entry.life, entry.options
    process_bytes = life.process_bytes
    if life.state is not VariantState.READY or life.info is None or process_bytes is None or options is None:
        return None
    known = entry.measured_bytes(options, life.info.device)
    if known is not None and process_bytes <= known * _GROWTH_NOTED:
        return None
    return MemoryRow(
        variant=entry.row.id,
        device=life.info.device,
        max_model_len=options.max_model_len,
        kv_cache_bytes=options.kv_cache_bytes,
        process_bytes=process_bytes,
        load_s=life.info.load_s,
    )
