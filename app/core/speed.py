"""How fast a worker is: the same requests that the front end sends it, in a closed loop, timed at the front end.

The times are those of the engine behind its socket: scheduling, steps and frames are in them; HTTP, tokenizing and
detokenizing are not, but for the moment by which HTTP keeps requests apart.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app.core.energy import DeviceMeter
from app.core.job_documents import TIMING, Workload
from app.core.neighbours import Company
from app.schemas.reports import Percentiles, SpeedLevel
from app.supervisor.job import JobFailed
from app.supervisor.stream import WorkerGone
from app.supervisor.worker import Worker
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate, JobProgress, SequenceUpdate, StepStats
from workers.protocol.specs import SamplingParams

# A 90th percentile needs ten values, a 99th a hundred.
_MIN_REQUESTS: Final = 10
# The first requests of all streams arrive together and wait for each other, later ones come one by one. Of two rounds
# the median lies between these two kinds and is that of neither, of five it is that of streams under way.
_MIN_ROUNDS: Final = 5
# A level begins no request after this: slow models get fewer, and `requests` says how many.
_LEVEL_S: Final = 60.0
_WARM_UP_TOKENS: Final = 4
# Requests over HTTP come one after the other, each after about this long in the front end (docs/performance.md), and
# the worker begins with the first. All in one frame, they would share every step from the first to the last, end
# together and come together again: a time to first token of all prompts, which no client sees.
_ARRIVAL_GAP_S: Final = 0.001
# From the beginning of one prompt to that of the next, in tokens.
_STRIDE: Final = 37


@dataclass(slots=True)
class Timeline:
    """When the tokens of one request arrived; seconds after it was handed over."""

    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_cached_tokens: int = 0

    def add(self, updates: Sequence[SequenceUpdate], at_s: float) -> None:
        """Note what has arrived now."""
        num_new = sum(len(update.token_ids) for update in updates)
        self.num_cached_tokens += sum(update.num_cached_tokens for update in updates)
        if not num_new:
            return
        if self.first_s is None:
            self.first_s = at_s
        else:
            self.gaps_s.append(at_s - self.last_s)
        self.last_s = at_s
        self.num_tokens += num_new

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first; None below two tokens."""
        if self.first_s is None or self.num_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.num_tokens - 1)


class SpeedTest:
    """Times a worker. name: of the job, unique, which also decides where in the text its prompts begin."""

    def __init__(self, name: str, worker: Worker, workload: Workload, company: Company, meter: DeviceMeter) -> None:
        self._name = name
        self._worker = worker
        self._workload = workload
        self._company = company
        self._meter = meter
        self._door = asyncio.Lock()
        self._num_requests = 0
        self._num_open = 0
        # the step in which somebody else's request was seen last
        self._shared: StepStats | None = None

    async def run(self, tokens: Sequence[int], on_progress: Callable[[JobProgress], None]) -> list[SpeedLevel]:
        """Every level, in order. tokens: of a text, longer than a prompt.

        Raises WorkerGone, or JobFailed for a request that the worker refuses.
        """
        prompts = self._prompts(tokens)
        total = sum(streams * rounds(streams) for streams in self._workload.streams)
        done = 0
        levels = []
        for streams in self._workload.streams:

            def tick(num_done: int, before: int = done) -> None:
                held_bytes = self._worker.stats.process_bytes or self._worker.info.process_bytes
                on_progress(JobProgress(phase=TIMING, done=before + num_done, total=total, rss_bytes=held_bytes))

            levels.append(await self._level(streams, prompts, tick))
            done += streams * rounds(streams)
        return levels

    async def _level(self, streams: int, prompts: Iterator[list[int]], tick: Callable[[int], None]) -> SpeedLevel:
        tick(0)
        warm_up = min(_WARM_UP_TOKENS, self._workload.new_tokens)
        await _together([self._request(next(prompts), warm_up) for _ in range(streams)])
        timelines: list[Timeline] = []
        started_s = time.monotonic()

        async def stream() -> None:
            for number in range(rounds(streams)):
                if number and time.monotonic() - started_s > _LEVEL_S:
                    return
                timelines.append(await self._request(next(prompts), self._workload.new_tokens))
                tick(len(timelines))

        energy_joules = self._meter.energy_joules()
        await _together([stream() for _ in range(streams)])
        duration_s = time.monotonic() - started_s
        self._company.look()
        num_tokens = sum(timeline.num_tokens for timeline in timelines)
        return SpeedLevel(
            streams=streams,
            requests=len(timelines),
            duration_s=duration_s,
            ttft_ms=percentiles([1000 * one.first_s for one in timelines if one.first_s is not None]),
            tpot_ms=percentiles([1000 * one.tpot_s for one in timelines if one.tpot_s is not None]),
            itl_ms=percentiles([1000 * gap_s for one in timelines for gap_s in one.gaps_s]),
            tokens_per_s=num_tokens / duration_s,
            cached_prompt_tokens=sum(one.num_cached_tokens for one in timelines),
            tokens_per_joule=_per_joule(num_tokens, energy_joules, self._meter.energy_joules()),
        )

    async def _request(self, prompt_ids: list[int], num_tokens: int) -> Timeline:
        self._num_requests += 1
        timeline = Timeline()
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        request_id = f"{self._name}-{self._num_requests}"
        async with self._door:
            await asyncio.sleep(_ARRIVAL_GAP_S)
        submitted_s = time.monotonic()
        stream = self._worker.submit(Generate(request_id=request_id, prompt_ids=prompt_ids, params=params))
        self._num_open += 1
        try:
            while True:
                updates = await stream.get()
                timeline.add(updates, time.monotonic() - submitted_s)
                self._look_for_company()
                if updates[-1].finish_reason is not None:
                    _check_end(updates[-1])
                    return timeline
        finally:
            self._num_open -= 1
            self._worker.cancel(request_id)

    def _look_for_company(self) -> None:
        """Once per step, though each of its streams has news of it."""
        if self._worker.num_streams > self._num_open and self._worker.stats is not self._shared:
            self._shared = self._worker.stats
            self._company.share()

    def _prompts(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """Prompts that begin at different places of the text, and at others in the next measurement: no cached ones."""
        length = self._workload.prompt_tokens
        num_starts = len(tokens) - length + 1
        start = random.Random(self._name).randrange(num_starts)
        while True:
            yield list(tokens[start : start + length])
            start = (start + _STRIDE) % num_starts


def percentiles(values: Sequence[float]) -> Percentiles:
    """Nearest rank: the smallest value that is not below so many of all."""
    ordered = sorted(values)
    count = len(ordered)

    def rank(share: float, least: int) -> float | None:
        return ordered[math.ceil(share * count) - 1] if count >= least else None

    return Percentiles(num_values=count, p50=rank(0.5, 1), p90=rank(0.9, 10), p99=rank(0.99, 100))


def rounds(streams: int) -> int:
    """Requests that each of so many streams sends."""
    return max(_MIN_ROUNDS, math.ceil(_MIN_REQUESTS / streams))


async def _together(work: Sequence[Coroutine[Any, Any, object]]) -> None:
    """All at once; when one fails, or this is cancelled, the others are cancelled and have ended before it says so."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_end(update: SequenceUpdate) -> None:
    if update.error is not None:
        raise JobFailed(update.error.code, update.error.message)
    if update.finish_reason is FinishReason.CANCELLED:
        raise WorkerGone("the worker cancelled a request that nobody had cancelled")
    if update.finish_reason is FinishReason.ERROR:
        raise JobFailed(WorkerErrorCode.INTERNAL, "the worker ended a request without a reason")


def _per_joule(num_tokens: int, before: float | None, after: float | None) -> float | None:
    if before is None or after is None or after <= before:
        return None
    return num_tokens / (after - before)
