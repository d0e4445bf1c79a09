"""One request inside the engine, and its share of one step.

The scheduler decides rows, the runner computes them, the sampler picks; these two records are what they share.
"""

from dataclasses import dataclass, field

from workers.engine.grammar import Matcher
from workers.protocol.messages import FinishReason, TokenLogprob
from workers.protocol.specs import SamplingParams


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """The mutable state of one request.

    num_computed_tokens: tokens whose keys and values (or recurrent state) are in the cache; a preempted sequence
    goes back to 0 and is recomputed. block_table: pages of the KV pool in order of position. slot: row of the pool
    of recurrent states (None = the model has none, or the sequence is not running). page_hashes: the prefix cache's
    digests of the first full pages, as far as they were computed. priority: see Generate. matcher: stands behind the
    output, and outlives preemption; None = anything goes.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    slot: int | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    scheduled_at_s: float | None = None
    page_hashes: list[bytes] = field(default_factory=list)
    priority: int = 0
    matcher: Matcher | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens at positions [start, end) of prompt + output."""
        split = len(self.prompt_ids)
        if end <= split:
            return self.prompt_ids[start:end]
        if start >= split:
            return self.output_ids[start - split : end - split]
        return self.prompt_ids[start:] + self.output_ids[: end - split]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A sequence's share of one step: its next `num_tokens` tokens from `num_computed_tokens` on.

    A decode row has num_tokens 1. wants_all_logits: logits of every position are needed (prompt logprobs), not only
    of the last one.
    """

    sequence: Sequence
    num_tokens: int
    wants_all_logits: bool = False

    @property
    def start(self) -> int:
        """Position of the first token of this row."""
        return self.sequence.num_computed_tokens

    @property
    def end(self) -> int:
        """Position behind the last token of this row; also the number of tokens the row attends to."""
        return self.sequence.num_computed_tokens + self.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """The tokens that enter the model."""
        return self.sequence.token_ids(self.start, self.end)

    @property
    def is_last_chunk(self) -> bool:
        """True if after this row the next token can be sampled."""
        return self.end == self.sequence.num_tokens
