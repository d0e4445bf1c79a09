"""A model of exact integer arithmetic whose only memory is the page pool, so that any wrong page changes its output.

Its logits depend on every token and its position, and on nothing else: results must be equal to the bit however rows
are batched, chunked, preempted or shared.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.engine.engine import Engine
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Row, Sequence
from workers.protocol.messages import FinishReason, Generate, RequestError, SequenceUpdate, StepStats, TokenLogprob
from workers.protocol.specs import SamplingParams

VOCAB_SIZE = 97


class ToyRunner:
    """raises, nans: request ids whose rows raise or give NaN. max_tokens_in_memory: more in one forward raises OOM."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        num_slots: int = 0,
        supports_chunks: bool = True,
        raises: frozenset[str] = frozenset(),
        nans: frozenset[str] = frozenset(),
        max_tokens_in_memory: int = 10**9,
    ) -> None:
        self.vocab_size = VOCAB_SIZE
        self.geometry = CacheGeometry(
            num_pages=num_pages,
            page_size=page_size,
            num_slots=num_slots,
            prefers_runs=True,
            supports_chunks=supports_chunks,
        )
        self.raises = raises
        self.nans = nans
        self.max_tokens_in_memory = max_tokens_in_memory
        self.forwards: list[list[Row]] = []
        self.released: list[str] = []
        self.pool = torch.full((num_pages * page_size,), -1)
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randint(0, 16, (VOCAB_SIZE, VOCAB_SIZE), generator=generator)

    def forward(self, rows: Many[Row]) -> list[Tensor]:
        self.forwards.append(list(rows))
        if sum(row.num_tokens for row in rows) > self.max_tokens_in_memory:
            raise torch.OutOfMemoryError("no room")
        if any(row.sequence.request_id in self.raises for row in rows):
            raise ValueError("this row is poison")
        return [self._logits(row) for row in rows]

    def release(self, sequence: Sequence) -> None:
        self.released.append(sequence.request_id)

    def _logits(self, row: Row) -> Tensor:
        page_size = self.geometry.page_size
        slots = torch.tensor(
            [row.sequence.block_table[p // page_size] * page_size + p % page_size for p in range(row.end)]
        )
        self.pool[slots[row.start :]] = torch.tensor(row.token_ids)
        first = row.start if row.wants_all_logits else row.end - 1
        logits = torch.stack([self._next(self.pool[slots[: p + 1]]) for p in range(first, row.end)])
        return logits * torch.nan if row.sequence.request_id in self.nans else logits

    def _next(self, context: Tensor) -> Tensor:
        if bool((context < 0).any()):
            raise ValueError("read a page that was never written")
        mixed = (context * 31 + torch.arange(len(context)) * 7) % VOCAB_SIZE
        return (self.table[mixed].sum(0) % 64).float() / 8


@dataclass
class Result:
    """Everything an engine said about one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    num_cached_tokens: int = 0
    num_stamps: int = 0
    completes_grammar: bool = False

    def take(self, update: SequenceUpdate) -> None:
        assert self.finish_reason is None, "an update after the end"
        self.token_ids += update.token_ids
        self.logprobs += update.logprobs or []
        self.prompt_logprobs = update.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = update.finish_reason
        self.error = update.error
        self.completes_grammar = update.completes_grammar
        self.num_cached_tokens += update.num_cached_tokens
        self.num_stamps += update.scheduled_at_s is not None


def request(request_id: str, prompt_ids: list[int], **params: object) -> Generate:
    """A request of 8 greedy tokens, unless told otherwise."""
    values = {"max_tokens": 8, "temperature": 0.0, **params}
    return Generate(request_id=request_id, prompt_ids=prompt_ids, params=SamplingParams(**values))


def run(engine: Engine, requests: list[Generate], max_steps: int = 2000) -> dict[str, Result]:
    """Add all requests and step until the engine is idle."""
    for item in requests:
        engine.add(item)
    return finish(engine, max_steps=max_steps)[0]


def finish(engine: Engine, max_steps: int = 2000) -> tuple[dict[str, Result], list[StepStats]]:
    """Step until the engine is idle."""
    results: dict[str, Result] = {}
    stats: list[StepStats] = []
    while not engine.is_idle:
        assert len(stats) < max_steps, "the engine does not come to an end"
        updates, step_stats = engine.step()
        stats.append(step_stats)
        for update in updates:
            results.setdefault(update.request_id, Result()).take(update)
    return results, stats
