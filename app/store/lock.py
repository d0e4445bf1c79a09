"""One server per data folder, held by a lock that the kernel drops when the process dies."""

import fcntl
import os
from pathlib import Path


class DataDirInUse(Exception):
    """Another server has this data folder."""

    def __init__(self, data_dir: Path, owner: str) -> None:
        super().__init__(
            f"data dir in use: {data_dir} belongs to a running server{owner}; stop it, or give this one a --data-dir"
        )


class DataDirLock:
    """An flock on `data_dir/.lock`. Children do not inherit it: Python opens files close-on-exec."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises DataDirInUse if another process holds it."""
        fd = os.open(self._data_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise DataDirInUse(self._data_dir, f" (pid {pid})" if pid else "") from error
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd

    def release(self) -> None:
        """Let it go. Without effect if it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
