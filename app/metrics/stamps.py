"""When things happened to one request. All times are CLOCK_MONOTONIC seconds, the same clock in every process."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestStamps:
    """arrived: its body was read; scheduled: it entered a step; first, last: its first and latest token got here."""

    arrived_s: float = field(default_factory=time.monotonic)
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None

    @property
    def queue_s(self) -> float | None:
        """From arrival to the first step."""
        return None if self.scheduled_s is None else max(0.0, self.scheduled_s - self.arrived_s)

    @property
    def prefill_s(self) -> float | None:
        """From the first step to the first token."""
        if self.scheduled_s is None or self.first_token_s is None:
            return None
        return max(0.0, self.first_token_s - self.scheduled_s)

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrived_s

    @property
    def total_s(self) -> float:
        """From arrival to the end, or to now while it is still running."""
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.arrived_s

    def tpot_s(self, num_tokens: int) -> float | None:
        """Time per output token after the first, of `num_tokens` in one choice; None below two."""
        if num_tokens < 2 or self.first_token_s is None or self.last_token_s is None:
            return None
        return (self.last_token_s - self.first_token_s) / (num_tokens - 1)
