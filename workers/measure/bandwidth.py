"""How fast a device reads its memory: the floor under the time per token, which reads all weights once.

A sum reads every byte and writes nothing. The buffer holds random numbers: pages of zeros may all be one physical page,
and is far larger than the caches, where what is read again and again would never leave them.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from workers.device import device_name, memory_free_bytes, resolve_device
from workers.protocol.messages import ProbeResult
from workers.protocol.specs import ProbeSpec

_BUFFER_BYTES = 2**30
_LEAST_BYTES = 2**24
_NUM_WARM_UPS = 2
_NUM_RUNS = 7


def probe_device(spec: ProbeSpec) -> ProbeResult:
    """Measure the device. Raises WorkerError for one that is not here."""
    device = resolve_device(spec.device)
    is_cuda = device.type == "cuda"
    return ProbeResult(
        device=str(device),
        device_name=device_name(device),
        read_bytes_per_s=read_bytes_per_s(device, _buffer_bytes(device)),
        num_threads=torch.get_num_threads(),
        uuid=f"GPU-{torch.cuda.get_device_properties(device).uuid}" if is_cuda else "",
        cuda=(torch.version.cuda or "") if is_cuda else "",
    )


def read_bytes_per_s(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of the median of several sums over a buffer of about num_bytes."""
    # fp32: the reduction that every device has a fast form of
    buffer = torch.empty(num_bytes // 4, dtype=torch.float32, device=device).uniform_()
    seconds = [_seconds(buffer.sum, device) for _ in range(_NUM_WARM_UPS + _NUM_RUNS)]
    return buffer.numel() * buffer.element_size() / median(seconds[_NUM_WARM_UPS:])


def _seconds(read: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        read()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
    started_s = time.perf_counter()
    read()
    return time.perf_counter() - started_s


def _buffer_bytes(device: torch.device) -> int:
    """A GiB, less where most of the memory belongs to others already."""
    return max(_LEAST_BYTES, min(_BUFFER_BYTES, memory_free_bytes(device) // 8))
