"""Which process works on a job, for tests that kill it."""

import psutil


def job_pid(parent: psutil.Process) -> int | None:
    """The process below `parent` that works on a job now; None between two of them."""
    for child in parent.children(recursive=True):
        try:
            if child.cmdline()[1:4] == ["-m", "workers", "job"]:
                return int(child.pid)
        except psutil.NoSuchProcess:  # a zombie has no command line any more
            continue
    return None
