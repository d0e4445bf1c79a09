"""When to start a crashed worker again, and when to give up."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Seconds to wait after the first, second... crash of a window; the crash number `max_crashes` is the last one.

    The first wait is short: one crash is bad luck, and a user waits for it.
    """

    delays_s: tuple[float, ...] = (0.2, 1, 2, 4, 8, 16, 30)
    max_crashes: int = 5
    window_s: float = 600


class Backoff:
    """The crashes of one variant within the window."""

    def __init__(self, policy: RestartPolicy, now: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._now = now
        self._crashes: deque[float] = deque()

    def next_delay_s(self) -> float | None:
        """Count a crash: seconds to wait before the next start, or None if it is time to give up."""
        now = self._now()
        self._crashes.append(now)
        while self._crashes[0] <= now - self._policy.window_s:
            self._crashes.popleft()
        count = len(self._crashes)
        if count >= self._policy.max_crashes:
            return None
        return self._policy.delays_s[min(count, len(self._policy.delays_s)) - 1]
