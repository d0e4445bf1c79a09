"""Which variants there are, how each is doing, and who serves it: names in, workers out."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import msgspec

from app import embedded
from app.core import fit, names
from app.core.bases import Bases
from app.core.choices import SUFFIX, Choices, choose, none_qualifies, qualified
from app.core.comparison import Comparison
from app.core.entries import ECHO, Entry, cast_row, echo_entry, entry_of
from app.core.job_documents import MEASURE, VERIFICATION
from app.core.load_request import LoadRequest
from app.core.pulse import Pulse
from app.core.registration import Registrations
from app.core.serving import ServingLife, quarantined
from app.core.variants import IDLE, Quality, Served, Speed, Variant, VariantState, with_measurement
from app.errors import Conflict, InvalidRequest, ModelNotFound, Unavailable
from app.schemas.reports import Environment, MeasurementObject, SpeedReport
from app.settings import Settings
from app.store import measurements, memory
from app.store import variants as variant_rows
from app.store.bases import BaseRow
from app.store.database import Store
from app.store.folders import discard
from app.store.measurements import MeasurementRow
from app.store.variants import VariantRow
from app.supervisor.supervisor import Supervisor
from workers.protocol.messages import MeasureResult
from workers.protocol.specs import DtypeName, EchoSpec

logger = logging.getLogger(__name__)


class Catalog:
    """Every variant by its id, in memory; what must survive a restart is written to the store first.

    `bases` and `registrations` are the two other tables of names; loading.Loader fills all three. `choices` says what
    `<base>/auto` means. `pulse` beats when a variant changes its state, is not used any more, or is to stay for another
    time.
    """

    def __init__(self, settings: Settings, store: Store, supervisor: Supervisor) -> None:
        self.bases = Bases(settings, store, supervisor)
        self.registrations = Registrations(self.bases)
        self.choices = Choices(store)
        self.pulse = Pulse()
        self._settings = settings
        self._store = store
        self._supervisor = supervisor
        self._entries: dict[str, Entry] = {}
        self._creating = asyncio.Lock()

    async def start(self) -> None:
        """Read what is stored and register the embedded base. Raises ApiError if that one is not usable."""
        await self.bases.start()
        await self.choices.start()
        rows = await self._store.run(variant_rows.select_all)
        for row in rows:
            self._add(row, None)
        for found in await self._store.run(measurements.select_all):
            _recall(self._entries[found.variant], found)
        for footprint in await self._store.run(memory.select_all):
            self._entries[footprint.variant].measured[footprint.device] = footprint
        for base in self.bases.list():
            await self.cast(base, fit.auto_dtype(base.info.dtype, self._settings.device))

    async def stop(self) -> None:
        """Let running requests end, then end every worker."""
        await self.registrations.stop()
        drain_s = self._settings.drain_timeout_s
        await asyncio.gather(*(entry.life.unload(drain_s) for entry in self._entries.values()))

    def list(self) -> list[Variant]:
        """Every variant, and every base that is still on its way in."""
        return [
            *(entry.snapshot() for entry in self._entries.values()),
            *(registration.variant() for registration in self.registrations.list()),
        ]

    def models(self) -> Sequence[Variant]:
        """Those of `list` that can be served, now or later; a base that could not be registered is none of them."""
        return [
            *(entry.snapshot() for entry in self._entries.values()),
            *(registration.variant() for registration in self.registrations.list() if not registration.has_failed),
        ]

    def resolve(self, model: str) -> Variant:
        """The variant that a name means; a base's name means its loaded cast, else its default one.

        Raises ModelNotFound.
        """
        registration = self.registrations.find(model)
        return registration.variant() if registration is not None else self.entry(model).snapshot()

    def model(self, model: str) -> Variant:
        """As resolve, of `models`. Raises ModelNotFound."""
        self._refuse_failed(model)
        return self.resolve(model)

    def acquire(self, model: str) -> Served:
        """A variant that takes requests now. Raises ApiError: unknown, not loaded, loading, failed."""
        self.refuse_unregistered(model)
        entry = self.entry(model)
        return Served(worker=entry.life.require_ready(), variant=entry.snapshot())

    async def wait_ready(self, variant_id: str, timeout_s: float) -> Served:
        """The variant as soon as it takes requests. Raises ApiError if it will not, or not in time."""
        entry = self.entry(variant_id)
        worker = await entry.life.wait_serving(timeout_s)
        return Served(worker=worker, variant=entry.snapshot())

    def unready(self) -> Sequence[Variant]:
        """Variants that must be ready and are not."""
        return [
            entry.snapshot() for entry in self._entries.values() if entry.life.is_required and not entry.life.is_serving
        ]

    def needs_worker(self, entry: Entry, request: LoadRequest) -> bool:
        """False if the variant has a worker that is what the request asks for.

        Raises ApiError if it cannot get one: deleted, of another dtype, loaded with other options, being unloaded,
        changed on disk.
        """
        life, name = entry.life, entry.row.id
        if self._entries.get(name) is not entry or entry.is_leaving:
            raise names.not_found(name, self._entries.keys() - {name})
        if request.dtype not in ("auto", entry.row.method) and entry.is_cast:
            raise InvalidRequest(
                f"Variant '{name}' is {entry.row.method}; name its base, '{entry.row.base}', "
                f"to load it as {request.dtype}.",
                param="dtype",
            )
        if life.state is VariantState.UNLOADING:
            raise Unavailable(f"Variant '{name}' is being unloaded.", retry_after_s=5, code="model_unloading")
        if life.state is VariantState.QUARANTINED:
            raise quarantined(name, life.reason)
        if life.state not in IDLE:
            if life.spec is not None and not request.agrees_with(life.spec):
                raise Conflict(f"Variant '{name}' is loaded with other options; unload it first.", code="variant_busy")
            return False
        if entry.base is not None and entry.is_cast:
            self.bases.check_unchanged(entry.base)
        return True

    def begin_load(self, entry: Entry, request: LoadRequest) -> bool:
        """Start a worker if the variant needs one; True if it did. No await between the checks and the start.

        Whether it fits is not looked at: Residency does. Raises ApiError as needs_worker does.
        """
        if not self.needs_worker(entry, request):
            entry.adjust(request)
            self.pulse.beat()
            return False
        name = entry.row.id
        entry.options = replace(request, model=name, name=None, revision=None, is_trusted=False)
        dtype = cast(DtypeName, entry.row.method) if entry.is_cast else request.dtype
        entry.life.load(entry.serve_spec(request, dtype, self._settings))
        return True

    async def unload(self, model: str, *, wait: bool, force: bool) -> Variant:
        """End a variant's worker; with force without letting its requests end. Raises ModelNotFound."""
        entry = self.entry(model)
        entry.options = None
        unloading = asyncio.ensure_future(entry.life.unload(0 if force else self._settings.drain_timeout_s))
        if wait:
            await unloading
        else:
            # One turn of the loop, so that the answer already says `unloading`.
            await asyncio.sleep(0)
        return entry.snapshot()

    async def delete(self, variant_id: str, *, force: bool) -> None:
        """Remove a variant and its files; a cast has none of its own, and its base goes with its last variant.

        Raises ModelNotFound, and Conflict if it is loaded and force is not set, or is the embedded model itself.
        """
        if self.registrations.find(variant_id) is not None:
            return self._delete_registration(variant_id)
        entry = self._entries.get(variant_id)
        if entry is None:
            raise names.not_found(variant_id, self._entries)
        if entry.echo is not None or (entry.row.base == embedded.NAME and entry.row.kind == "cast"):
            raise Conflict(f"'{variant_id}' belongs to the server and stays.", code="variant_protected")
        if entry.life.state not in IDLE and not force:
            raise Conflict(f"Variant '{variant_id}' is loaded; unload it, or say ?force=true.", code="variant_busy")
        entry.is_leaving = True  # from here on nobody can load it
        try:
            await entry.life.unload(0)
            await self._store.run(variant_rows.delete, variant_id)
            del self._entries[variant_id]
        finally:
            entry.is_leaving = False
        self.pulse.beat()
        if entry.row.dir is not None:
            await asyncio.to_thread(discard, entry.folder, self._store.data_dir)
        logger.info("variant deleted", extra={"variant": variant_id})
        await self._forget_base_if_unused(entry.row.base)

    def published(self, row: VariantRow, quality: Quality | None) -> None:
        """A job has stored this row: show it, in place of an unloaded one of the same id."""
        self._entries.pop(row.id, None)
        self._add(row, quality)

    def measured(self, variant_id: str, result: MeasurementObject) -> None:
        """A job has stored this measurement: show it with the variant."""
        entry, environment = self._entries[variant_id], result.environment
        if result.quality is not None:
            entry.quality = with_measurement(entry.quality, result.quality)
        if result.speed is not None:
            _add_speed(entry, Speed(report=result.speed, environment=environment, created=time.time()))

    def entry(self, model: str) -> Entry:
        """The entry that a name means. Raises ModelNotFound, and Conflict for an `auto` that means none."""
        base = self.bases.get(model.removesuffix(SUFFIX)) if model.endswith(SUFFIX) else None
        if base is not None:
            return self.chosen(base)
        found = self._entries.get(model) or self.of_base(model)
        if found is None:
            raise names.not_found(model, [*self._entries, *(base.name for base in self.bases.list())])
        return found

    def chosen(self, base: BaseRow) -> Entry:
        """What `<base>/auto` means now. Raises Conflict if no variant satisfies its constraints."""
        found = choose(qualified(self.comparison(base), self.choices.of(base.name)))
        if found is None:
            raise none_qualifies(base.name)
        return self._entries[found.id]

    def comparison(self, base: BaseRow, device: str | None = None) -> Comparison:
        """The variants of a base side by side. device: of the speeds; None is that of the newest measurement."""
        variants = [entry.snapshot() for entry in self._entries.values() if entry.row.base == base.name]
        return Comparison(base, variants, self._settings.device, device)

    def compared(self) -> Sequence[Variant]:
        """As `list`, with the measurements of quality that may stand side by side in place of the newest ones."""
        compared = {
            one.id: one for base in self.bases.list() for one in self.comparison(base).with_common_measurements()
        }
        return [compared.get(one.id, one) for one in self.list()]

    def find(self, variant_id: str) -> Entry | None:
        """The entry of exactly this id."""
        return self._entries.get(variant_id)

    async def cast(self, base: BaseRow, dtype: str) -> Entry:
        """The base in one dtype; made at its first mention."""
        async with self._creating:
            row = cast_row(base, dtype, int(time.time()))
            if row.id not in self._entries:
                await self._store.run(variant_rows.insert, row)
                self._add(row, None)
        return self._entries[row.id]

    async def withdraw(self, entry: Entry) -> None:
        """Forget a cast that was made for a load that was refused, unless another load has begun meanwhile.

        A base's only variant stays: by it clients find the base, and can delete it.
        """
        async with self._creating:
            siblings = [one for one in self._entries.values() if one.row.base == entry.row.base]
            if len(siblings) == 1 or entry not in siblings or entry.life.state is not VariantState.REGISTERED:
                return
            # out of sight before the first await, so that nobody begins to load it
            del self._entries[entry.row.id]
            await self._store.run(variant_rows.delete, entry.row.id)

    def add_echo(self, name: str) -> Entry:
        """The stand-in variant `echo/<name>`, which is not stored and speaks with the embedded model's tokenizer."""
        known = self._entries.get(f"{ECHO}/{name}")
        if known is not None:
            return known
        base = self.bases.get(embedded.NAME)
        assert base is not None, "registered at the start"
        settings = self._settings
        spec = EchoSpec(vocab_size=base.info.vocab_size, ttft_s=settings.echo_ttft_s, itl_s=settings.echo_itl_s)
        entry = echo_entry(name, self._supervisor, self.pulse, self.bases.text_folder(base), spec)
        return self._entries.setdefault(entry.row.id, entry)

    def cast_meant(self, base: BaseRow, request: LoadRequest) -> tuple[str, Entry | None]:
        """The dtype in which a request means a base, and its variant if there is one.

        The dtype asked for; else that of a cast which is loaded or about to be; else the one that runs well here.
        """
        dtype: str = request.dtype
        if dtype == "auto":
            loaded = self.of_base(base.name)
            if loaded is not None and loaded.life.state not in IDLE:
                return loaded.row.method, loaded
            dtype = fit.auto_dtype(base.info.dtype, request.device or self._settings.device)
        return dtype, self.find(f"{base.name}/{dtype}")

    def entries(self) -> Sequence[Entry]:
        """Every variant's entry, oldest first."""
        return [*self._entries.values()]

    def _add(self, row: VariantRow, quality: Quality | None) -> None:
        life = ServingLife(row.id, self._supervisor, self.pulse, row.quarantine_reason)
        entry = entry_of(row, life, self.bases, self._store.data_dir)
        entry.quality = quality
        self._entries[row.id] = entry

    def of_base(self, base: str) -> Entry | None:
        """Of a base's casts: one that serves, one that is coming, the default one, any."""
        casts = [entry for entry in self._entries.values() if entry.row.base == base and entry.row.kind == "cast"]
        return min(casts, key=self._preference, default=None)

    def _preference(self, entry: Entry) -> tuple[bool, bool, bool]:
        auto = fit.auto_dtype(entry.base.info.dtype, self._settings.device) if entry.base is not None else ""
        return not entry.life.is_serving, entry.life.state in IDLE, entry.row.method != auto

    async def _forget_base_if_unused(self, base: str) -> None:
        if not any(entry.row.base == base for entry in self._entries.values()):
            await self.bases.forget(base)

    def refuse_unregistered(self, model: str) -> None:
        """Raise ApiError if this is the name of a base that is still on its way in, or did not get here."""
        self._refuse_failed(model)
        if self.registrations.find(model) is not None:
            raise Unavailable(
                f"'{model}' is being downloaded; GET /v1/variants/{model} tells how far.", retry_after_s=30
            )

    def _refuse_failed(self, model: str) -> None:
        registration = self.registrations.find(model)
        if registration is not None and registration.has_failed:
            raise ModelNotFound(
                f"The model '{model}' could not be registered: {registration.variant().reason}", param="model"
            )

    def _delete_registration(self, variant_id: str) -> None:
        registration = self.registrations.find(variant_id)
        assert registration is not None
        if not registration.task.done():
            raise Conflict(f"'{variant_id}' is being downloaded.", code="variant_busy")
        self.registrations.forget(registration.name)


def _recall(entry: Entry, row: MeasurementRow) -> None:
    """Show a stored measurement with its variant; they come oldest first."""
    if row.kind == VERIFICATION:
        entry.quality = Quality(kl_mean=row.values["kl_mean"], top1_agreement=row.values["top1_agreement"])
    elif row.kind == MEASURE:
        entry.quality = with_measurement(entry.quality, msgspec.convert(row.values, MeasureResult))
    else:
        report, environment = msgspec.convert(row.values, SpeedReport), msgspec.convert(row.environment, Environment)
        _add_speed(entry, Speed(report=report, environment=environment, created=row.created))


def _add_speed(entry: Entry, speed: Speed) -> None:
    device = speed.environment.device
    entry.speeds = {**entry.speeds, device: (*entry.speeds.get(device, ()), speed)}
