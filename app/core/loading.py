"""From what a client calls a model to a worker that loads it: find it, or register it first."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Final

from app.core import names
from app.core.bases import Source
from app.core.catalog import Catalog
from app.core.choices import SUFFIX
from app.core.entries import ECHO, Entry
from app.core.load_request import LoadRequest
from app.core.registration import Registration
from app.core.residency import Residency
from app.core.variants import Variant, VariantState
from app.errors import ApiError, InvalidRequest
from app.settings import Settings
from app.store.bases import BaseRow

logger = logging.getLogger(__name__)

# A hub model that is already in the cache is registered within this; a download takes longer, and nobody waits.
_REGISTRATION_WAIT_S: Final = 2.0


class Loader:
    """Answers POST /v1/load and POST /v1/bases, and loads what the operator wants at the start."""

    def __init__(self, settings: Settings, catalog: Catalog, residency: Residency) -> None:
        self._settings = settings
        self._catalog = catalog
        self._residency = residency
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_start: dict[str, str] = {}

    async def load(self, request: LoadRequest, *, wait: bool) -> Variant:
        """Begin to load; with wait, until it is ready. Concurrent loads of one variant are one load.

        Raises ApiError if it cannot be loaded; without wait, a later failure is seen in the variant's state.
        """
        found = self._find(request)
        if isinstance(found, Source):
            registered = await self._register(request, found, wait=wait)
            if isinstance(registered, Registration):
                self._spawn(self._load_later(request, registered))
                return registered.variant()
            found = registered
        if isinstance(found, BaseRow):
            entry = await self._begin_cast(request, found)
        else:
            entry = found
            await self._residency.begin_load(entry, request)
        if wait:
            await entry.life.settle()
            if entry.life.state is VariantState.FAILED and entry.life.error is not None:
                raise entry.life.error
        return entry.snapshot()

    async def register(self, request: LoadRequest, *, wait: bool) -> BaseRow | None:
        """Register a model as a base without loading it; one that is registered already is found.

        Returns None while a download goes on that nobody waits for. Raises ApiError if it cannot be registered.
        """
        found = self._find(request)
        if isinstance(found, Entry):
            if found.base is None:
                raise InvalidRequest(f"'{request.model}' is a stand-in and has no base.", param="model")
            return found.base
        if isinstance(found, BaseRow):
            return found
        registered = await self._register(request, found, wait=wait)
        return registered if isinstance(registered, BaseRow) else None

    def start(self, models: Iterable[str]) -> None:
        """Begin to load what the operator named."""
        for model in models:
            self._at_start[model] = "loading"
            self._spawn(self._load_at_start(model))

    def unready(self) -> dict[str, str]:
        """What must be ready and is not, and why: asked for at the start, or loaded since and not unloaded."""
        late = {model: why for model, why in self._at_start.items() if not self._is_serving(model)}
        return late | {variant.id: variant.reason or str(variant.state) for variant in self._catalog.unready()}

    def name_of(self, model: str) -> str:
        """What requests call a model of `start`: the base that its folder or hub id is or becomes, else the model."""
        try:
            found = self._look_up(LoadRequest(model=_source_of(model), is_trusted=True))
            if isinstance(found, Source):
                return names.base_name(found.text)
        except ApiError:
            return model
        return found.name if isinstance(found, BaseRow) else found.row.id

    async def stop(self) -> None:
        """Forget loads that wait for a download."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _find(self, request: LoadRequest) -> Entry | BaseRow | Source:
        found = self._look_up(request)
        if isinstance(found, Entry | BaseRow):
            base = found.name if isinstance(found, BaseRow) else found.row.base
            if request.name not in (None, base):
                raise InvalidRequest(f"This model is registered already, as '{base}'.", param="name")
            if request.revision is not None and getattr(found, "revision", None) != request.revision:
                raise InvalidRequest("'revision' chooses among those of a model of the hub.", param="revision")
        return found

    def _look_up(self, request: LoadRequest) -> Entry | BaseRow | Source:
        model = request.model
        if model.startswith("/"):
            source = self._catalog.bases.local_source(model, is_trusted=request.is_trusted)
            return self._catalog.bases.find(source) or source
        entry = self._catalog.find(model)
        if entry is not None:
            return entry
        if self._settings.enable_echo and model.partition("/")[0] == ECHO:
            return self._catalog.add_echo(names.check_part(model.partition("/")[2] or ECHO, "model"))
        base = self._catalog.bases.get(model.removesuffix(SUFFIX))
        if base is not None:
            return self._catalog.chosen(base) if model.endswith(SUFFIX) else base
        if names.is_hub_id(model) and self._catalog.bases.get(model.partition("/")[0]) is None:
            hub = Source(hub_id=model, revision=request.revision)
            return self._catalog.bases.find(hub) or hub
        raise names.not_found(model, [variant.id for variant in self._catalog.models()])

    async def _register(self, request: LoadRequest, source: Source, *, wait: bool) -> BaseRow | Registration:
        """The new base; without wait, the registration if it is a download that takes longer than a moment."""
        registration = self._begin_registration(request, source)
        if source.hub_id is not None and not wait:
            await asyncio.wait({registration.task}, timeout=_REGISTRATION_WAIT_S)
            if not registration.task.done():
                return registration
        return await asyncio.shield(registration.task)

    def _begin_registration(self, request: LoadRequest, source: Source) -> Registration:
        name = names.base_name(source.text) if request.name is None else names.check_part(request.name, "name")
        if name == ECHO:
            raise InvalidRequest("The base name 'echo' is taken by the stand-in model; give another.", param="name")
        return self._catalog.registrations.begin(name, source, request.dtype)

    async def _begin_cast(self, request: LoadRequest, base: BaseRow) -> Entry:
        """Begin to load the variant of a base that is meant: the dtype asked for, else one that is loaded, else auto's.

        Raises ApiError if it is refused; a variant that did not exist before is then withdrawn.
        """
        dtype, known = self._catalog.cast_meant(base, request)
        entry = known or await self._catalog.cast(base, dtype)
        try:
            await self._residency.begin_load(entry, request)
        except ApiError:
            if known is None:
                await self._catalog.withdraw(entry)
            raise
        return entry

    async def _load_later(self, request: LoadRequest, registration: Registration) -> None:
        try:
            base = await asyncio.shield(registration.task)
            await self._begin_cast(request, base)
        except ApiError as error:
            logger.error("load failed: %s", error.message, extra={"base": registration.name})

    async def _load_at_start(self, model: str) -> None:
        try:
            variant = await self.load(LoadRequest(model=_source_of(model), is_trusted=True, evict=False), wait=True)
        except ApiError as error:
            self._at_start[model] = error.message
            logger.error("cannot load %s: %s", model, error.message)
        else:
            logger.info("loaded at the start", extra={"variant": variant.id})
            del self._at_start[model]

    def _is_serving(self, model: str) -> bool:
        """True if somebody has loaded what could not be loaded at the start."""
        entry = self._catalog.find(model) or self._catalog.of_base(model)
        return entry is not None and entry.life.is_serving

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _source_of(model: str) -> str:
    """What the operator named, a folder with its whole path."""
    return str(Path(model).resolve()) if model.startswith((".", "/")) else model
