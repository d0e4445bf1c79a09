"""Runs the rows of one step through model and sampler, and finds out whose fault it is when that fails.

Nothing here changes a sequence: a step that raised is simply run again in halves, so that only the row that raises
on its own gets the error, after at most ceil(log2(rows)) further levels.
"""

import logging
import os
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.boundary import Failure, attempt
from workers.engine.logprobs import token_logprobs
from workers.engine.runner import Runner
from workers.engine.sampler import NONFINITE, Pick, sample
from workers.engine.sequence import Row
from workers.faults import Faults
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import RequestError, TokenLogprob

logger = logging.getLogger(__name__)

# The front end reads this exit status as: the device is lost, start a fresh process.
EXIT_DEVICE_LOST = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step did for one row.

    row: as it ran, which may be shorter than scheduled. pick: None where nothing was to be sampled.
    prompt_logprobs: of the prompt tokens that follow the row's positions.
    """

    row: Row
    pick: Pick | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


class Executor:
    """Model and sampler behind a wall: `run` always returns."""

    def __init__(self, runner: Runner, *, eos_token_ids: frozenset[int], faults: Faults) -> None:
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._faults = faults
        self.num_out_of_memory = 0

    def run(self, rows: Many[Row]) -> list[Outcome]:
        """Outcomes of these rows. rows: those that matter most first.

        Rows for which the device's memory did not suffice are missing: they stay scheduled for a later step.
        """
        result = attempt(lambda: self._execute(rows), what=f"a step of {len(rows)} rows", is_retried=len(rows) > 1)
        if not isinstance(result, Failure):
            return result
        if result.is_fatal:
            logger.critical("the device is lost; exiting so that a fresh process can take over")
            os._exit(EXIT_DEVICE_LOST)
        if result.code is WorkerErrorCode.INSUFFICIENT_MEMORY:
            return self._run_fewer(rows, result)
        if len(rows) == 1:
            return [_failed(rows[0], result)]
        middle = len(rows) // 2
        return self.run(rows[:middle]) + self.run(rows[middle:])

    def _run_fewer(self, rows: Many[Row], failure: Failure) -> list[Outcome]:
        """Run the first half, or half of the only row's tokens; the others wait for a later step."""
        self.num_out_of_memory += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) > 1:
            return self.run(rows[: len(rows) // 2])
        row = rows[0]
        if row.num_tokens == 1 or not self._runner.geometry.supports_chunks:
            return [_failed(row, failure)]
        half = Row(sequence=row.sequence, num_tokens=row.num_tokens // 2, wants_all_logits=row.wants_all_logits)
        return self.run([half])

    def _execute(self, rows: Many[Row]) -> list[Outcome]:
        with torch.inference_mode():
            logits = [self._with_faults(row, part) for row, part in zip(rows, self._runner.forward(rows), strict=True)]
            finished = [place for place, row in enumerate(rows) if row.is_last_chunk and row.sequence.params.max_tokens]
            picks: list[Pick | None] = [None] * len(rows)
            if finished:
                last = torch.cat([logits[place][-1:] for place in finished])
                sampled = sample(last, [rows[place].sequence for place in finished], self._eos_token_ids)
                for place, pick in zip(finished, sampled, strict=True):
                    picks[place] = pick
            return [self._outcome(*item) for item in zip(rows, logits, picks, strict=True)]

    def _outcome(self, row: Row, logits: Tensor, pick: Pick | None) -> Outcome:
        if not row.wants_all_logits or (pick is not None and pick.error is not None):
            return Outcome(row=row, pick=pick)
        # Logits at position i belong to the token at i + 1; those of the last prompt token to the first output.
        targets = row.sequence.prompt_ids[row.start + 1 : row.end + 1]
        if not targets:
            return Outcome(row=row, pick=pick)
        if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
            return Outcome(row=row, pick=NONFINITE)
        num_top = row.sequence.params.prompt_logprobs or 0
        return Outcome(row=row, pick=pick, prompt_logprobs=token_logprobs(logits[: len(targets)], targets, num_top))

    def _with_faults(self, row: Row, logits: Tensor) -> Tensor:
        if self._faults.hit("worker.logits", row.sequence.request_id) == "nan":
            return torch.full_like(logits, torch.nan)
        return logits


def _failed(row: Row, failure: Failure) -> Outcome:
    return Outcome(row=row, pick=Pick(error=RequestError(code=failure.code, message=failure.message)))
