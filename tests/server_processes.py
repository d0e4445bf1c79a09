"""Which child processes of a server do what now, for tests that count or kill them."""

import psutil


def job_pid(server: psutil.Process) -> int | None:
    """The process that works on a job now; None between two of them."""
    return next(iter(_pids(server, "job")), None)


def serving_pids(server: psutil.Process) -> list[int]:
    """The processes that serve a variant now; not those of another server that this process has started."""
    return _pids(server, "serve")


def _pids(server: psutil.Process, kind: str) -> list[int]:
    found = []
    for child in server.children():
        try:
            if child.cmdline()[1:4] == ["-m", "workers", kind]:
                found.append(int(child.pid))
        except psutil.NoSuchProcess:  # it has ended meanwhile; a zombie has no command line any more
            continue
    return found
