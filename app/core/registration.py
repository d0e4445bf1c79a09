"""Bases on their way in: a local folder takes a moment, a hub model a download that its client need not wait for."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from app.core.bases import Bases, Source
from app.core.variants import Variant, VariantState
from app.errors import ApiError, Conflict
from app.store.bases import BaseRow


@dataclass(slots=True, kw_only=True)
class Registration:
    """One base that is being inspected, or that could not be registered."""

    name: str
    source: Source
    method: str
    task: asyncio.Task[BaseRow]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def has_failed(self) -> bool:
        """True once it is over without a base."""
        return self.task.done() and (self.task.cancelled() or self.task.exception() is not None)

    def variant(self) -> Variant:
        """What a list of variants says meanwhile: little is known before the files are here."""
        error = self.task.exception() if self.task.done() and not self.task.cancelled() else None
        return Variant(
            id=f"{self.name}/{self.method}",
            base=self.name,
            method=self.method,
            kind="cast",
            created=self.created,
            state=VariantState.LOADING if error is None else VariantState.FAILED,
            reason="downloading" if error is None else _reason(error),
            # where it comes from, until there is a folder
            folder=Path(self.source.text),
            architecture="",
            num_parameters=0,
            max_model_len=0,
            format="",
            bits=0,
            bytes_on_disk=0,
            estimated_bytes=0,
        )


class Registrations:
    """At most one per name; concurrent loads of one source share it."""

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._by_name: dict[str, Registration] = {}

    def begin(self, name: str, source: Source, method: str) -> Registration:
        """Start to register, or join the one under way. Raises Conflict if the name belongs to another source."""
        other = self._bases.get(name)
        current = self._by_name.get(name)
        if current is not None and not current.task.done():
            if current.source == source:
                return current
            raise _taken(name, current.source.text)
        if other is not None:
            raise _taken(name, other.source)
        task = asyncio.get_running_loop().create_task(self._bases.register(name, source))
        registration = Registration(name=name, source=source, method=method, task=task)
        self._by_name[name] = registration
        task.add_done_callback(lambda done: self._ended(name, done))
        return registration

    def find(self, variant_id: str) -> Registration | None:
        """The registration that a list shows under this id."""
        found = self._by_name.get(variant_id.partition("/")[0])
        return found if found is not None and f"{found.name}/{found.method}" == variant_id else None

    def list(self) -> list[Registration]:
        """Those under way, and failed downloads until somebody tries again."""
        return [*self._by_name.values()]

    def forget(self, name: str) -> None:
        """Drop a failed one from the list."""
        self._by_name.pop(name, None)

    async def stop(self) -> None:
        """Give up those under way; their processes end with the supervisor."""
        tasks = [one.task for one in self._by_name.values() if not one.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, name: str, task: "asyncio.Task[BaseRow]") -> None:
        # A folder that is not a model was told to its client; only a download's failure comes when nobody waits.
        registration = self._by_name.get(name)
        if registration is None or registration.task is not task:
            return
        if not registration.has_failed or registration.source.hub_id is None:
            del self._by_name[name]


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, ApiError) else "internal error; the server's log has the details"


def _taken(name: str, source: str) -> Conflict:
    return Conflict(
        f"The base name '{name}' belongs to another source ('{Path(source).name}'); give this one a 'name' of its own.",
        code="base_exists",
        param="name",
    )
