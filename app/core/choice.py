"""One sequence from the front end's side: tokens in, certain text out."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import Struct

from app.core.detokenizer import Detokenizer
from app.core.stop_strings import StopStrings
from app.core.tools.output import CallPiece, OutputParser, Parsed
from app.supervisor.stream import Stream
from workers.protocol.messages import FinishReason, RequestError, SequenceUpdate, TokenLogprob


class Delta(Struct, frozen=True, kw_only=True):
    """News of one choice: text that is certain, the tokens behind it, and why it ended, if it did.

    text: content; thinking and calls have been taken out of it.
    token_ids and logprobs hold every token since the last delta, also those whose text is still held back.
    """

    index: int
    text: str
    reasoning: str = ""
    calls: list[CallPiece] = []
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How tokens of this request become text."""

    stops: tuple[str, ...]
    includes_stop: bool
    skips_special_tokens: bool
    min_tokens: int


class Choice:
    """The state of one sequence. `advance` takes the worker's updates, in order, until `finish_reason` is set."""

    __slots__ = (
        "_detokenizer", "_logprobs", "_num_read", "_output", "_rules", "_stops", "_token_ids", "error",
        "finish_reason", "index", "last_token_s", "num_cached_tokens", "num_reasoning_tokens", "num_tokens",
        "prompt_ids", "prompt_logprobs", "scheduled_s", "stream",
    )  # fmt: skip

    def __init__(
        self, index: int, prompt_ids: list[int], detokenizer: Detokenizer, rules: TextRules, output: OutputParser
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.stream: Stream | None = None
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.scheduled_s: float | None = None
        self.last_token_s: float | None = None
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self._detokenizer = detokenizer
        self._output = output
        self._rules = rules
        self._stops = StopStrings(rules.stops, includes_stop=rules.includes_stop)
        self._num_read = 0
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched

    def advance(self, updates: Iterable[SequenceUpdate]) -> list[Delta]:
        """The deltas of these updates, one per token that completes some text."""
        deltas: list[Delta] = []
        for update in updates:
            if self.finish_reason is not None:
                break
            self._note(update)
            last = len(update.token_ids) - 1
            for position, token_id in enumerate(update.token_ids):
                reason = update.finish_reason if position == last else None
                logprob = update.logprobs[position] if update.logprobs else None
                # A stop token ends the text and is no part of it, unless the client wants to see what stopped it.
                is_stop_token = reason is FinishReason.STOP and not update.completes_grammar
                is_text = not is_stop_token or self._rules.includes_stop
                self._add_token(deltas, token_id, logprob, reason, is_text=is_text)
                if self.finish_reason is not None:
                    break
            if last < 0 and update.finish_reason is not None:
                self._end(deltas, "", update.finish_reason)
        return deltas

    def _note(self, update: SequenceUpdate) -> None:
        if update.scheduled_at_s is not None:
            self.scheduled_s = update.scheduled_at_s
            self.num_cached_tokens = update.num_cached_tokens
        if update.prompt_logprobs is not None:
            self.prompt_logprobs = update.prompt_logprobs
        if update.token_ids:
            self.last_token_s = time.monotonic()
        self.error = update.error

    def _add_token(
        self,
        deltas: list[Delta],
        token_id: int,
        logprob: TokenLogprob | None,
        reason: FinishReason | None,
        *,
        is_text: bool,
    ) -> None:
        self.num_tokens += 1
        self._token_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        piece = self._detokenizer.feed(token_id) if is_text else ""
        if reason is not None:
            piece += self._detokenizer.flush()
        text = self._certain(piece) if piece else ""
        if self._stops.matched is not None:
            self._emit(deltas, text, FinishReason.STOP)
        elif reason is not None:
            self._end(deltas, text, reason)
        elif text:
            self._emit(deltas, text, None)

    def _certain(self, piece: str) -> str:
        # the first min_tokens tokens cannot stop anything, not even as the beginning of a stop string
        return piece if self.num_tokens <= self._rules.min_tokens else self._stops.feed(piece)

    def _end(self, deltas: list[Delta], text: str, reason: FinishReason) -> None:
        self._emit(deltas, text + self._stops.flush(), reason)

    def _emit(self, deltas: list[Delta], text: str, reason: FinishReason | None) -> None:
        self.finish_reason = reason
        parsed = self._parse(text, is_end=reason is not None)
        if parsed.is_empty and reason is None:
            return
        deltas.append(
            Delta(
                index=self.index,
                text=parsed.content,
                reasoning=parsed.reasoning,
                calls=parsed.calls,
                token_ids=self._token_ids,
                logprobs=self._logprobs,
                finish_reason=reason,
            )
        )
        self._token_ids, self._logprobs = [], []

    def _parse(self, text: str, *, is_end: bool) -> Parsed:
        was_reasoning = self._output.is_reasoning
        parsed = self._output.feed(text)
        if was_reasoning or self._output.is_reasoning:
            self.num_reasoning_tokens += self.num_tokens - self._num_read
        self._num_read = self.num_tokens
        if is_end:
            parsed.add(self._output.finish())
        return parsed
