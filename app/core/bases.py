"""Base models: where they may lie, what an inspection says of them, whether they are still what was inspected."""

import asyncio
import ipaddress
import logging
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app import embedded
from app.errors import Conflict, Forbidden, WorkerCrashed, from_worker
from app.settings import Settings
from app.store import bases as base_rows
from app.store.bases import BaseRow
from app.store.database import Store
from app.supervisor.job import JobFailed
from app.supervisor.stream import WorkerGone
from app.supervisor.supervisor import Supervisor
from workers.protocol.messages import BaseInfo, JobProgress
from workers.protocol.specs import InspectSpec

logger = logging.getLogger(__name__)

# What belongs to a tokenizer.json that had to be converted, so that one folder has all of it.
_TOKENIZER_COMPANIONS: Final = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a base comes from: exactly one of a local folder and a hub id, the latter at a revision or the newest."""

    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None

    @property
    def text(self) -> str:
        """As its user named it."""
        return str(self.path) if self.path is not None else str(self.hub_id)


class Bases:
    """The registered bases, in memory and in the store."""

    def __init__(self, settings: Settings, store: Store, supervisor: Supervisor) -> None:
        self._settings = settings
        self._store = store
        self._supervisor = supervisor
        self._rows: dict[str, BaseRow] = {}

    async def start(self) -> None:
        """Read the rows, and bring the embedded base's up to date with the files that this version ships."""
        self._rows = {row.name: row for row in await self._store.run(base_rows.select_all)}
        known = self._rows.get(embedded.NAME)
        folder = embedded.model_path()
        if known is None or known.source != str(folder) or _changed_file(known.info) is not None:
            await self.register(embedded.NAME, Source(path=folder), replaces=True)

    def list(self) -> list[BaseRow]:
        """Every base, oldest first."""
        return [*self._rows.values()]

    def get(self, name: str) -> BaseRow | None:
        """The base of this name."""
        return self._rows.get(name)

    def find(self, source: Source) -> BaseRow | None:
        """The base that was registered from this source."""
        return next((r for r in self._rows.values() if r.source == source.text and r.revision == source.revision), None)

    async def register(self, name: str, source: Source, *, replaces: bool = False) -> BaseRow:
        """Inspect a source in a process of its own (a hub model is downloaded first) and store what it is.

        Raises ApiError: not found, unsafe, unsupported, no room.
        """
        info = await self._inspect(name, source)
        row = BaseRow(name=name, source=source.text, revision=source.revision, info=info, created=int(time.time()))
        if replaces and name in self._rows:
            await self._store.run(base_rows.update_info, name, row.source, info)
        else:
            await self._store.run(base_rows.insert, row)
        self._rows[name] = row
        await asyncio.to_thread(self._gather_tokenizer, row)
        logger.info("base registered", extra={"base": name, "architecture": info.architecture})
        return row

    async def forget(self, name: str) -> None:
        """Remove a base that has no variant and no open job, and what was downloaded for it; else leave it."""
        try:
            is_gone = await self._store.run(base_rows.delete, name)
        except sqlite3.IntegrityError:
            is_gone = False
        if not is_gone:
            logger.info("the base stays: something uses it", extra={"base": name})
            return
        del self._rows[name]
        await asyncio.to_thread(shutil.rmtree, self._own_folder(name), ignore_errors=True)

    def check_unchanged(self, row: BaseRow) -> None:
        """Raise Conflict if a file of the base has another size or time than when it was inspected."""
        changed = _changed_file(row.info)
        if changed is not None:
            raise Conflict(
                f"Base '{row.name}' is not what was registered: {changed} has changed. Load its folder under another "
                "'name', or DELETE the variants of this base and load it again.",
                code="base_changed",
                param="model",
            )

    def text_folder(self, row: BaseRow) -> Path:
        """The folder with tokenizer.json, its config and the chat template."""
        folder = Path(row.info.path)
        return folder if (folder / "tokenizer.json").is_file() else self._own_folder(row.name)

    def local_source(self, model: str, *, is_trusted: bool) -> Source:
        """A folder that may be read. is_trusted: the operator named it at the start. Raises Forbidden."""
        folder = Path(os.path.realpath(model))
        if not is_trusted and not self._may_read(folder):
            raise Forbidden(
                "This folder is not below one of the folders that models are loaded from (SLIMSERVE_MODELS_DIRS).",
                code="folder_not_allowed",
                param="model",
            )
        return Source(path=folder)

    def readable(self, path: str, param: str) -> Path:
        """The real path of a file that clients may have read: below a folder of models. Raises Forbidden."""
        file = Path(os.path.realpath(path))
        if "\0" in path or not self._may_read(file):
            raise Forbidden(
                "This file is not below one of the folders that the server reads from (SLIMSERVE_MODELS_DIRS).",
                code="folder_not_allowed",
                param=param,
            )
        return file

    def _may_read(self, folder: Path) -> bool:
        roots = [Path(os.path.realpath(root)) for root in self._settings.models_dirs]
        if any(folder.is_relative_to(root) for root in roots):
            return True
        # Who can reach a loopback port without a key can read the user's files anyway.
        return not self._settings.models_dirs and not self._settings.has_keys and _is_loopback(self._settings.host)

    async def _inspect(self, name: str, source: Source) -> BaseInfo:
        spec = InspectSpec(
            path=str(source.path) if source.path is not None else None,
            hub_id=source.hub_id,
            revision=source.revision,
            target_dir=str(self._own_folder(name)),
        )
        process = await self._supervisor.start_job(f"inspect {name}", spec, _ignore_progress)
        try:
            done = await process.result()
        except JobFailed as failed:
            raise from_worker(failed.code, failed.message) from failed
        except WorkerGone as gone:
            raise WorkerCrashed(f"The inspection of '{name}' died: {gone.reason}.") from gone
        assert done.base is not None
        return done.base

    def _own_folder(self, name: str) -> Path:
        return self._store.data_dir / "bases" / name

    def _gather_tokenizer(self, row: BaseRow) -> None:
        """Beside a converted tokenizer.json, put what else a text model needs."""
        own, theirs = self._own_folder(row.name), Path(row.info.path)
        if own == theirs or not (own / "tokenizer.json").is_file():
            return
        for name in _TOKENIZER_COMPANIONS:
            if (theirs / name).is_file():
                shutil.copyfile(theirs / name, own / name)


def _changed_file(info: BaseInfo) -> str | None:
    """The first file that is not as it was inspected, by size and time of change."""
    for name, (size, mtime_ns) in info.files.items():
        try:
            now = os.stat(Path(info.path, name))
        except OSError:
            return name
        if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
            return name
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ignore_progress(progress: JobProgress) -> None:
    """An inspection is over before anyone could look; a download's bytes are seen on disk."""
