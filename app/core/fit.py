"""What a load will take before anything of it is read, and what the machine has left.

The estimate is of a CPU worker. What a GPU has free is known to the worker alone, which refuses by itself.
"""

from pathlib import Path
from typing import Final

import psutil

DTYPE_BYTES: Final = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
_BF16_CPU_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
# An idle worker: Python, torch and transformers, measured 0.45 GiB resident.
_PROCESS_BYTES: Final = 512 * 2**20
# Activations, fragmentation, a small KV pool.
_MARGIN: Final = 1.1
_CGROUP: Final = Path("/sys/fs/cgroup")


def cast_bytes(weight_bytes: int, stored_dtype: str, dtype: str) -> int:
    """Bytes of the weights once they are in `dtype`."""
    return weight_bytes * DTYPE_BYTES[dtype] // DTYPE_BYTES.get(stored_dtype, 2)


def estimated_bytes(weight_bytes: int, kv_cache_bytes: int | None = None) -> int:
    """What a worker with these weights is expected to take in all."""
    return int(weight_bytes * _MARGIN) + _PROCESS_BYTES + (kv_cache_bytes or 0)


def auto_dtype(stored_dtype: str, device: str) -> str:
    """The dtype in which a checkpoint runs well here; workers.device follows the same rule.

    On a CPU without bf16 instructions both half precisions become fp32, with them fp16 becomes bf16.
    """
    if stored_dtype not in ("bf16", "fp16"):
        return "fp32"
    if not is_cuda(device):
        return "bf16" if _cpu_has_fast_bf16() else "fp32"
    return stored_dtype


def is_cuda(device: str) -> bool:
    """True if this device name means a GPU here; "auto" means one where the driver's device file is."""
    return device.startswith("cuda") or (device == "auto" and Path("/dev/nvidiactl").exists())


def device_key(device: str) -> str:
    """The one name of a device that a request may call by several, as workers report it: "cpu" or "cuda:N"."""
    if not is_cuda(device):
        return "cpu"
    return "cuda:0" if device in ("auto", "cuda") else device


def private_bytes(pid: int) -> int:
    """What the machine gets back when this process ends: its pages that no other process shares. 0 if it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def available_bytes() -> int:
    """Memory that a new process can have: the machine's, or what the cgroup still allows."""
    machine: int = psutil.virtual_memory().available
    limit, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    if limit is None or used is None:
        return machine
    return min(machine, limit - used)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cpu_has_fast_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _BF16_CPU_FLAGS.isdisjoint(flags.split())
