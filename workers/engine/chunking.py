"""How many prompt tokens enter one step, so that a long prompt neither freezes other streams nor wastes a step."""

# A stream that is being read should not pause for longer than this because someone else's prompt arrives.
DECODING_TARGET_S = 0.08
# Nobody waits between tokens: larger chunks read the weights less often. Still bounded, because a step is also how
# long a cancel waits, and because a step is the heartbeat.
ALONE_TARGET_S = 2.0
# Below this a chunk costs as much as a decode step, so cutting further only prolongs the prompt.
_MIN_CHUNK_TOKENS = 16
# Before the speed is known.
_FIRST_CHUNK_TOKENS = 256
# Weight of the newest measurement in the moving averages.
_NEWEST_WEIGHT = 0.3


class ChunkPacer:
    """Chooses chunk sizes from moving averages of what steps took.

    is_timed: False (an accelerator, where a whole budget takes milliseconds) always allows `max_tokens`.
    """

    def __init__(self, *, max_tokens: int, is_timed: bool) -> None:
        self._max_tokens = max_tokens
        self._is_timed = is_timed
        self._prefill_token_s: float | None = None
        self._decode_step_s = 0.0

    def num_tokens(self, *, has_decodes: bool) -> int:
        """Prompt tokens that the next step may hold."""
        if not self._is_timed:
            return self._max_tokens
        if self._prefill_token_s is None:
            return min(_FIRST_CHUNK_TOKENS, self._max_tokens)
        target_s = DECODING_TARGET_S if has_decodes else ALONE_TARGET_S
        return min(self._max_tokens, max(_MIN_CHUNK_TOKENS, int(target_s / self._prefill_token_s)))

    def observe(self, *, num_prefill_tokens: int, num_decode_tokens: int, step_s: float) -> None:
        """Learn from one finished step. In a mixed step the decode rows are taken to cost what they cost alone."""
        if num_prefill_tokens == 0:
            self._decode_step_s += _NEWEST_WEIGHT * (step_s - self._decode_step_s)
            return
        prefill_s = step_s - (self._decode_step_s if num_decode_tokens else 0.0)
        # A decode step may have become cheaper than its average; no chunk is free.
        newest = max(prefill_s, step_s / 10) / num_prefill_tokens
        average = newest if self._prefill_token_s is None else self._prefill_token_s
        self._prefill_token_s = average + _NEWEST_WEIGHT * (newest - average)

    def shrink(self) -> None:
        """Halve the budget for good: a step did not fit into the memory of the device."""
        self._max_tokens = max(_MIN_CHUNK_TOKENS, self._max_tokens // 2)
