"""What every result file says about where it was made: hardware, versions, commit, load, read bandwidth."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = ("slimserve", "torch", "transformers", "tokenizers", "fastapi", "uvicorn", "msgspec", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Date, commit, processor, versions and load average, for the head of a result file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def tell(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON, and write it to the file `output` if there is one."""
    text = json.dumps(result, indent=2)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


def read_bandwidth_bytes_per_s(num_bytes: int = 2**30, repeats: int = 5) -> float:
    """Median speed at which torch sums a buffer far larger than any cache, on the CPU."""
    import torch

    # random values, not zeros: pages of zeros may all be one physical page
    buffer = torch.randint(0, 2**31 - 1, (num_bytes // 8,), dtype=torch.int64)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        buffer.sum()
        seconds.append(time.perf_counter() - start)
    return num_bytes / median(seconds)


def _commit() -> str:
    folder = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _cpu_name() -> str:
    flags: set[str] = set()
    name = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(extensions)})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
