"""The one connection to the one file, on the one thread that uses it.

`locking_mode=EXCLUSIVE` keeps every other connection out, `synchronous=FULL` makes a commit survive a power cut: an
accepted job is on disk before its 202 is sent.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from app.store.lock import DataDirLock
from app.store.migrations import migrate

P = ParamSpec("P")
T = TypeVar("T")

_PRAGMAS: Final = (
    "locking_mode = EXCLUSIVE",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "busy_timeout = 0",
    "temp_store = MEMORY",
    "mmap_size = 0",
)
_FOLDERS: Final = ("bases", "staging", "variants", "trash", "quarantine")


class DatabaseDamaged(Exception):
    """SQLite's own check found the file broken."""


class Store:
    """State on disk. Repositories are functions whose first argument is the connection; `run` calls them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._lock = DataDirLock(data_dir)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Take the folder and open the file. Raises DataDirInUse, DatabaseDamaged or SchemaTooNew."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            for name in _FOLDERS:
                (self.data_dir / name).mkdir(exist_ok=True)
            await asyncio.get_running_loop().run_in_executor(self._executor, self._connect)
        except BaseException:
            await self.close()
            raise

    async def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call work(connection, ...) on the store's thread in one transaction; when this returns it is on disk.

        An exception rolls all of it back. Cancelling the await does not stop work that has begun.
        """

        def transaction() -> T:
            connection = self._connection
            assert connection is not None
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection, *args, **kwargs)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result

        return await asyncio.get_running_loop().run_in_executor(self._executor, transaction)

    async def close(self) -> None:
        """Let the file and the folder go. Without effect the second time."""
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._lock.release()

    def _connect(self) -> None:
        path = self.data_dir / "slimserve.db"
        # isolation_level None: transactions are begun and ended by `run` alone.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.row_factory = sqlite3.Row
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise DatabaseDamaged(f"{path} is not readable: {error}") from error
        if found != "ok":
            raise DatabaseDamaged(f"{path} is damaged: {found}")
        migrate(connection)
