"""Where a measurement was made: hardware, versions, commit, and how busy the machine was."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from app import __version__
from app.schemas.reports import Environment
from workers.protocol.messages import MeasureResult, ProbeResult

_PACKAGES: Final = ("torch", "transformers", "tokenizers", "safetensors")
_ROOT: Final = Path(__file__).resolve().parents[2]
_GIT_TIMEOUT_S: Final = 10


def environment_of(found: MeasureResult | ProbeResult, num_threads: int | None, driver: str | None) -> Environment:
    """The machine as it is now; takes some milliseconds. found: names the device. driver: of a GPU, if it is known."""
    software = {"slimserve": __version__, "python": platform.python_version()}
    software |= {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    if isinstance(found, ProbeResult):
        num_threads = found.num_threads
        software |= {"cuda": found.cuda} if found.cuda else {}
    if driver is not None:
        software["driver"] = driver
    return Environment(
        device=found.device,
        device_name=found.device_name,
        num_cpus=len(os.sched_getaffinity(0)),
        num_threads=num_threads,
        load_average=os.getloadavg()[0],
        commit=_commit(),
        software=software,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this file belongs to; None where it was installed without one."""
    if not (_ROOT / ".git").exists():
        return None
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit or None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
