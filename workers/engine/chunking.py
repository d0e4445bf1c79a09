"""How many prompt tokens enter one step, so that a long prompt neither freezes other streams nor wastes a step.

A step costs about a + b * n seconds for n prompt tokens: a for reading the weights and for Python, whatever n is, and b
for arithmetic. On a small model b decides; on one that is large for its machine a does, and cutting a prompt smaller
only pays a more often. a is learnt from steps that only decode, b from the others.
"""

# A stream that is being read should not wait longer than this because someone else's prompt arrives, or than one more
# step where steps alone take longer already.
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
# Prompt tokens take at least this share of their steps, whatever noise says: no chunk is free.
_MIN_TOKEN_SHARE = 0.05


class ChunkPacer:
    """Chooses chunk sizes from what steps took.

    is_timed: False (an accelerator, where a whole budget takes milliseconds) always allows `max_tokens`.
    """

    def __init__(self, *, max_tokens: int, is_timed: bool) -> None:
        self._max_tokens = max_tokens
        self._is_timed = is_timed
        self._decode_step_s = _MovingMean()
        self._prefill_step_s = _MovingMean()
        self._prefill_step_tokens = _MovingMean()

    def num_tokens(self, *, has_decodes: bool) -> int:
        """Prompt tokens that the next step may hold."""
        if not self._is_timed:
            return self._max_tokens
        if self._prefill_step_tokens.value == 0:
            return min(_FIRST_CHUNK_TOKENS, self._max_tokens)
        fixed_s = self._decode_step_s.value
        target_s = max(DECODING_TARGET_S, fixed_s) if has_decodes else ALONE_TARGET_S
        return min(self._max_tokens, max(_MIN_CHUNK_TOKENS, int(target_s / self._token_s(fixed_s))))

    def observe(self, *, num_prefill_tokens: int, step_s: float) -> None:
        """Learn from one finished step. Decode rows cost little beside the weights that every step reads."""
        if num_prefill_tokens == 0:
            self._decode_step_s.add(step_s)
            return
        self._prefill_step_s.add(step_s)
        self._prefill_step_tokens.add(num_prefill_tokens)

    def _token_s(self, fixed_s: float) -> float:
        """b: seconds per prompt token beyond the fixed cost."""
        step_s = self._prefill_step_s.value
        return max(step_s - fixed_s, _MIN_TOKEN_SHARE * step_s) / self._prefill_step_tokens.value

    def shrink(self) -> None:
        """Halve the budget for good: a step did not fit into the memory of the device."""
        self._max_tokens = max(_MIN_CHUNK_TOKENS, self._max_tokens // 2)


class _MovingMean:
    """Mean over recent values, older ones fading; 0 before the first."""

    def __init__(self) -> None:
        self.value = 0.0
        self._is_empty = True

    def add(self, newest: float) -> None:
        self.value += (1.0 if self._is_empty else _NEWEST_WEIGHT) * (newest - self.value)
        self._is_empty = False
