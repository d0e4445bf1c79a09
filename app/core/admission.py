"""How many requests a variant may hold at once. Counting and refusing are one step, before any work is done."""

import math
import time
from typing import Final

from app.errors import RateLimited

MAX_RETRY_AFTER_S: Final = 30
# Weight of the newest gap between two ends in the running mean.
_SMOOTHING: Final = 0.1


class Admission:
    """Counters per variant, and how fast each drains."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._admitted: dict[str, int] = {}
        self._ended_at_s: dict[str, float] = {}
        self._gap_s: dict[str, float] = {}

    def enter(self, variant_id: str) -> None:
        """Count a request in. Raises RateLimited, with the time after which a place is likely, when there is none."""
        admitted = self._admitted.get(variant_id, 0)
        if admitted >= self._max_queue:
            raise RateLimited(
                f"Variant '{variant_id}' already has {admitted} requests, which is its limit; try again later.",
                retry_after_s=self._retry_after_s(variant_id),
            )
        self._admitted[variant_id] = admitted + 1

    def leave(self, variant_id: str) -> None:
        """Count a request out."""
        now_s = time.monotonic()
        self._admitted[variant_id] -= 1
        gap_s = now_s - self._ended_at_s.get(variant_id, now_s)
        self._ended_at_s[variant_id] = now_s
        self._gap_s[variant_id] = (1 - _SMOOTHING) * self._gap_s.get(variant_id, gap_s) + _SMOOTHING * gap_s

    def admitted(self, variant_id: str) -> int:
        """Requests inside right now."""
        return self._admitted.get(variant_id, 0)

    def _retry_after_s(self, variant_id: str) -> int:
        """A quarter of the queue's own drain time: then a fair share of the refused find a place."""
        drain_s = self._gap_s.get(variant_id, 0.0) * self._max_queue
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(drain_s / 4)))
