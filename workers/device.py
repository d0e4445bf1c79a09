"""Devices and dtypes: which one a name means here, how much memory it has, what runs fast on it."""

import functools
import os
from pathlib import Path

import psutil
import torch

from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import DtypeName

_DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Instructions that multiply bf16 pairs. Without one of them bf16 products are emulated: prefill is 4 to 9 times slower
# than fp32 (measured on AVX512-VNNI cores).
_BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def resolve_device(name: str) -> torch.device:
    """The device that `name` means: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises WorkerError (invalid_request) for an unknown name and for a device that this machine does not have.
    """
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if num_cuda else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not (index.isascii() and index.isdigit())):
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"device {name!r} is unknown; devices are 'auto', 'cpu', 'cuda' and 'cuda:<number>'",
        )
    number = int(index or 0)
    if number >= num_cuda:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"device {name!r} is not here: torch sees {num_cuda} CUDA devices; use 'auto' or 'cpu'",
        )
    return torch.device("cuda", number)


def resolve_dtype(name: DtypeName, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype of activations and of unquantized weights.

    A dtype asked for by name is honoured. "auto" takes the stored one where the device runs it fast: on a CPU with
    bf16 instructions fp16 becomes bf16, on one without both become fp32; on a GPU without them bf16 becomes fp32 (fp16
    would overflow: its largest number is 65,504).
    """
    if name != "auto":
        return _DTYPES[name]
    if stored not in (torch.bfloat16, torch.float16):
        return torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_fast_bf16() else torch.float32
    if stored is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    return stored


@functools.cache
def cpu_has_fast_bf16() -> bool:
    """True if the CPU multiplies bf16 in hardware. False where that cannot be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _BF16_CPU_FLAGS.isdisjoint(flags.split())


def device_name(device: torch.device) -> str:
    """What the hardware calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, "") or "CPU"


def memory_used_bytes(device: torch.device) -> int:
    """What this process holds: resident bytes on the CPU, bytes allocated by torch on CUDA."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def memory_peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far: resident bytes on the CPU, bytes allocated by torch on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss: a child begins with that of the process it was forked from. The kernel updates this one in batches
    # per core, so it can be behind the present by some hundred kB.
    used_bytes = memory_used_bytes(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return max(used_bytes, int(line.split()[1]) * 1024)
    return used_bytes


def memory_free_bytes(device: torch.device) -> int:
    """What this process may still take: on the CPU the smaller of what the machine has and what its cgroup allows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    return min([free, *_cgroup_free_bytes(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _cgroup_free_bytes(root: Path, membership: Path) -> list[int]:
    """Room below each memory limit over this process, cgroup v2 and v1; page cache counts as room."""
    room = []
    for folder, limit_name, usage_name in _cgroup_folders(root, membership):
        try:
            limit = (folder / limit_name).read_text().strip()
            usage = int((folder / usage_name).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # cgroup v1 says "no limit" with a number near 2**63.
        if limit.isdigit() and int(limit) < 2**60:
            cache = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            room.append(max(0, int(limit) - usage + cache))
    return room


def _cgroup_folders(root: Path, membership: Path) -> list[tuple[Path, str, str]]:
    """Every folder with a limit that applies: this process's cgroup and all above it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        relative = os.path.normpath(path).lstrip("/.")
        if controllers == "":
            base, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = base / relative
        folders += [(at, *names) for at in [folder, *folder.parents] if at == base or base in at.parents]
    return folders
