"""What a child process inherits: an allow-list, so that no key or token of the front end reaches it.

The one place beside app.settings that looks at the environment, and only to hand parts of it on.
"""

import os
import sys
from pathlib import Path
from typing import Final

import workers

_INHERITED: Final = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",  # allocators such as jemalloc are injected this way
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CC",  # triton compiles its launchers with it
    "TRITON_CACHE_DIR",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
)
# Only the job that may have to download a gated model gets the user's hub token.
_HUB_SECRETS: Final = ("HF_TOKEN", "HF_TOKEN_PATH")
# glibc raises its threshold with the tensors that are freed, and then keeps half of every layer a job has walked over.
# A fixed one gives all of it back; huge pages halve what that costs (GPTQ: 18 % more processor time, not 44).
_JOB_ALLOCATOR: Final = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={2**20}:glibc.malloc.hugetlb=1"}


# Where libgomp's threads wait they spin, 300,000 turns by default, which is milliseconds: they keep the core from the
# one that they wait for. A worker's spin for as long as the gap between two products of a step; a job's do not,
# because nobody waits for its next step.
_WORKER_WAITING: Final = {"GOMP_SPINCOUNT": "10000"}
_JOB_WAITING: Final = {"OMP_WAIT_POLICY": "passive"}


def child_environment(*, faults: str, needs_hub: bool, is_job: bool = False) -> dict[str, str]:
    """The environment of one child. faults: SLIMSERVE_FAULTS of the children, empty for none."""
    names = _INHERITED + (_HUB_SECRETS if needs_hub else ())
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment["PYTHONUNBUFFERED"] = "1"
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if environment.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        environment |= _JOB_WAITING if is_job else _WORKER_WAITING
    if is_job:
        environment |= _JOB_ALLOCATOR
    if faults:
        environment["SLIMSERVE_FAULTS"] = faults
    return environment


def child_folder() -> Path:
    """The working directory from which `python -m workers` finds the same code that the front end runs."""
    return Path(workers.__file__).resolve().parent.parent


def child_command(kind: str, fd: int) -> list[str]:
    """The command line of a child; kind is `serve` or `job`, fd its end of the socket."""
    return [sys.executable, "-m", "workers", kind, "--fd", str(fd)]
