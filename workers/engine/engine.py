"""The engine: takes requests in, runs one step at a time, hands updates out.

    while there is work: schedule, run, commit

Everything that can fail for one request fails inside `admission` or `execution`; here is only bookkeeping.
"""

import logging
import time
from dataclasses import dataclass

from workers.boundary import Failure, attempt
from workers.engine.admission import refusal
from workers.engine.chunking import ChunkPacer
from workers.engine.execution import Executor, Outcome
from workers.engine.grammar import Grammars
from workers.engine.runner import Runner
from workers.engine.sampler import stop_ids
from workers.engine.scheduler import Scheduler, is_decoding
from workers.engine.sequence import Row, Sequence
from workers.faults import NO_FAULTS, Faults
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate, RequestError, SequenceUpdate, StepStats

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What one engine may do at once.

    max_model_len: tokens of prompt and output of one sequence. max_num_batched_tokens: prompt tokens of one step, which
    may end its last page beyond that. is_prefill_timed: cut prompts by measured time, where a whole budget takes
    seconds (a CPU).
    """

    max_model_len: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    eos_token_ids: frozenset[int] = frozenset()
    is_prefill_timed: bool = False


class Engine:
    """One model's sequences from `add` to their last update."""

    def __init__(
        self, runner: Runner, limits: EngineLimits, faults: Faults = NO_FAULTS, *, tokenizer_path: str | None = None
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._faults = faults
        pool_tokens = runner.geometry.num_pages * runner.geometry.page_size
        self.max_model_len = min(limits.max_model_len, pool_tokens)
        # A prompt that cannot be cut does not become shorter by a small budget, it only waits for one.
        is_timed = limits.is_prefill_timed and runner.geometry.supports_chunks
        self._pacer = ChunkPacer(max_tokens=limits.max_num_batched_tokens, is_timed=is_timed)
        self._scheduler = Scheduler(
            runner.geometry, max_num_seqs=limits.max_num_seqs, pacer=self._pacer, release=runner.release
        )
        self._executor = Executor(runner, eos_token_ids=limits.eos_token_ids, faults=faults)
        self._grammars = Grammars(tokenizer_path, vocab_size=runner.vocab_size, eos_token_ids=limits.eos_token_ids)
        self._live: dict[str, Sequence] = {}
        self._news: list[SequenceUpdate] = []

    @property
    def is_idle(self) -> bool:
        """True if a step would do nothing: no sequences, and nothing to tell."""
        return not self._live and not self._news

    def add(self, request: Generate) -> None:
        """Queue a request. One that can never run is answered in the next step, with an error."""
        if request.request_id in self._live:
            logger.error("request %s is already running here; ignored", request.request_id)
            return
        error = refusal(request, vocab_size=self._runner.vocab_size, max_model_len=self.max_model_len)
        if error is not None:
            self._refuse(request, error)
            return
        sequence = Sequence(
            request_id=request.request_id,
            prompt_ids=request.prompt_ids,
            params=request.params,
            priority=request.priority,
        )
        grammar = request.params.grammar
        if grammar is not None:
            matcher = attempt(lambda: self._grammars.matcher(grammar), what="compiling a grammar")
            if isinstance(matcher, Failure):
                self._refuse(request, RequestError(code=matcher.code, message=matcher.message))
                return
            sequence.matcher = matcher
        self._live[request.request_id] = sequence
        self._scheduler.add(sequence)

    def _refuse(self, request: Generate, error: RequestError) -> None:
        self._news.append(SequenceUpdate(request_id=request.request_id, finish_reason=FinishReason.ERROR, error=error))

    def cancel(self, request_id: str) -> None:
        """Drop a sequence and free what it holds. An unknown id may have just finished, and is ignored."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._end(sequence, FinishReason.CANCELLED)
            self._news.append(SequenceUpdate(request_id=request_id, finish_reason=FinishReason.CANCELLED))

    def step(self) -> tuple[list[SequenceUpdate], StepStats]:
        """Advance every scheduled sequence once. Returns all news since the last step."""
        self._faults.hit("worker.step")
        started_s = time.monotonic()
        rows = self._scheduler.schedule()
        outcomes = self._run(rows) if rows else []
        num_decode = sum(is_decoding(outcome.row.sequence) for outcome in outcomes)
        num_prefill = sum(outcome.row.num_tokens for outcome in outcomes) - num_decode
        updates = self._news + [update for outcome in outcomes if (update := self._commit(outcome, started_s))]
        self._news = []
        step_s = time.monotonic() - started_s
        if rows:
            self._pacer.observe(num_prefill_tokens=num_prefill, step_s=step_s)
        return updates, self._stats(num_prefill, num_decode, step_s)

    def _run(self, rows: list[Row]) -> list[Outcome]:
        """Run the rows; if memory did not suffice for all of them, schedule less from now on."""
        num_before = self._executor.num_out_of_memory
        outcomes = self._executor.run(rows)
        if self._executor.num_out_of_memory > num_before:
            self._pacer.shrink()
        return outcomes

    def _commit(self, outcome: Outcome, started_s: float) -> SequenceUpdate | None:
        """Write a row's outcome into its sequence. Returns what the front end should hear of it, if anything."""
        sequence, pick = outcome.row.sequence, outcome.pick
        is_first, is_last_chunk = sequence.scheduled_at_s is None, outcome.row.is_last_chunk
        if is_first:
            sequence.scheduled_at_s = started_s
        if pick is not None and pick.error is not None:
            return self._fail(sequence, pick.error)
        self._advance(outcome)
        failure = self._follow(sequence) if pick is not None and pick.token_id is not None else None
        if failure is not None:
            return self._fail(sequence, RequestError(code=failure.code, message=failure.message))
        if not is_first and not is_last_chunk:
            return None
        if is_last_chunk:
            sequence.finish_reason = self._finish_reason(sequence)
        owes_prompt = is_last_chunk and sequence.params.prompt_logprobs is not None and len(sequence.output_ids) <= 1
        update = SequenceUpdate(
            request_id=sequence.request_id,
            token_ids=[] if pick is None or pick.token_id is None else [pick.token_id],
            logprobs=[pick.logprob] if pick is not None and pick.logprob is not None else None,
            prompt_logprobs=sequence.prompt_logprobs if owes_prompt else None,
            finish_reason=sequence.finish_reason,
            num_cached_tokens=sequence.num_cached_tokens if is_first else 0,
            scheduled_at_s=started_s if is_first else None,
            completes_grammar=sequence.finish_reason is FinishReason.STOP and not self._has_stop_token(sequence),
        )
        if sequence.finish_reason is not None:
            self._end(sequence, sequence.finish_reason)
        return update

    def _advance(self, outcome: Outcome) -> None:
        """Count the row's tokens as computed, keep its prompt logprobs, append its token."""
        row, sequence = outcome.row, outcome.row.sequence
        start = row.start
        if row.wants_all_logits:
            sequence.prompt_logprobs += outcome.prompt_logprobs if start else [None, *outcome.prompt_logprobs]
        sequence.num_computed_tokens += row.num_tokens
        self._scheduler.pages.index(sequence, start)
        if outcome.pick is not None and outcome.pick.token_id is not None:
            sequence.output_ids.append(outcome.pick.token_id)

    def _follow(self, sequence: Sequence) -> Failure | None:
        """Move the matcher behind the newest token. A failure is this sequence's alone."""
        matcher = sequence.matcher
        if matcher is None or self._has_stop_token(sequence):
            return None
        token_id = sequence.output_ids[-1]

        def accept() -> None:
            self._faults.hit("worker.grammar", sequence.request_id)
            matcher.accept(token_id)

        return attempt(accept, what="following a grammar")

    def _has_stop_token(self, sequence: Sequence) -> bool:
        ends = stop_ids(sequence.params, self._limits.eos_token_ids)
        return bool(sequence.output_ids) and sequence.output_ids[-1] in ends

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        if self._has_stop_token(sequence) or (sequence.matcher is not None and sequence.matcher.is_complete):
            return FinishReason.STOP
        if len(sequence.output_ids) >= sequence.params.max_tokens or sequence.num_tokens >= self.max_model_len:
            return FinishReason.LENGTH
        return None

    def _fail(self, sequence: Sequence, error: RequestError) -> SequenceUpdate:
        is_sound = error.code is not WorkerErrorCode.NONFINITE_LOGITS
        logger.warning("request %s: %s", sequence.request_id, error.code.value)
        self._end(sequence, FinishReason.ERROR, is_sound=is_sound)
        return SequenceUpdate(request_id=sequence.request_id, finish_reason=FinishReason.ERROR, error=error)

    def _end(self, sequence: Sequence, reason: FinishReason, *, is_sound: bool = True) -> None:
        sequence.finish_reason = reason
        self._scheduler.remove(sequence, is_sound=is_sound)
        del self._live[sequence.request_id]

    def _stats(self, num_prefill_tokens: int, num_decode_tokens: int, step_s: float) -> StepStats:
        return StepStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_prefill_tokens=num_prefill_tokens,
            num_decode_tokens=num_decode_tokens,
            kv_usage_ratio=self._scheduler.pages.usage_ratio,
            step_s=step_s,
            preemptions_total=self._scheduler.num_preemptions,
            prefix_hit_tokens_total=self._scheduler.num_prefix_hit_tokens,
        )
