"""The stopwatch of the checks that decide, at start-up, whether an op is worth using on this machine."""

import time
from collections.abc import Callable

from torch import Tensor

_REPEATS = 7
# An op without a fast path here is several times slower than what replaces it, one with it several times faster. In
# between lies only noise, which must not decide: two workers of one machine should compute alike.
_MARGIN = 2.0


def is_worth_it(op: Callable[[], Tensor], fallback: Callable[[], Tensor]) -> bool:
    """False if `op` is clearly slower than `fallback`, by the fastest of a few runs in turn: others only add time."""
    op_s, fallback_s = [], []
    for _ in range(_REPEATS):
        op_s.append(_seconds(op))
        fallback_s.append(_seconds(fallback))
    return min(op_s) < _MARGIN * min(fallback_s)


def _seconds(action: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
