"""The stopwatch of the checks that decide, at start-up, whether an op is worth using on this machine."""

import time
from collections.abc import Callable

from torch import Tensor

_REPEATS = 7


def fastest_s(action: Callable[[], Tensor]) -> float:
    """Seconds of the fastest of a few runs: what others do on the machine only ever adds."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)
