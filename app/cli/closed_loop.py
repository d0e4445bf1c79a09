"""Timed requests to one variant, as many clients at once as asked for, each prompt its own.

Each client sends its next request when its last one has ended. The first ones of several clients arrive together and
wait for each other, later ones come one by one: that is why a level of several is one loop of many requests, and not
many loops of few, in which the median would be that of the first ones.
"""

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from app.cli.client import Client
from app.cli.completion import Completion, Timing
from app.cli.terminal import CommandFailed

# From the beginning of one prompt to that of the next, in tokens: no two have a beginning in common.
_STRIDE: Final = 37


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each timed request looks like, in tokens; how many each client sends at each level of `streams` clients."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_runs: int
    streams: tuple[int, ...] = (1,)

    @property
    def num_prompts(self) -> int:
        """Prompts per variant, those that warm up too."""
        return (self.num_runs + 1) * sum(self.streams)

    @property
    def num_text_tokens(self) -> int:
        """Tokens of the text that these prompts are cut from."""
        return self.num_prompt_tokens + (self.num_prompts - 1) * _STRIDE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopTimes:
    """What one closed loop took. tokens_per_s: of all clients together, first request to last token."""

    timings: list[Timing]
    tokens_per_s: float


def prompts(ids: Sequence[int], workload: Workload) -> Iterator[list[int]]:
    """The workload's prompts, cut from a text's tokens, elsewhere each time so that no earlier run has cached them.

    Raises CommandFailed for a text that is too short.
    """
    if workload.num_text_tokens > len(ids):
        raise CommandFailed(
            f"the text has {len(ids)} tokens, too few for {workload.num_prompts} prompts of "
            f"{workload.num_prompt_tokens}; lower --runs, --streams or --prompt-tokens"
        )
    num_starts = len(ids) - workload.num_prompt_tokens + 1
    first = random.randrange(num_starts)
    starts = ((first + number * _STRIDE) % num_starts for number in range(workload.num_prompts))
    return (list(ids[start : start + workload.num_prompt_tokens]) for start in starts)


def closed_loop(client: Client, model: str, shares: Sequence[Sequence[list[int]]], num_tokens: int) -> LoopTimes:
    """Time one loop of one client per share of the prompts, with answers of `num_tokens` tokens."""

    def send(share: Sequence[list[int]]) -> list[Timing]:
        return [timed(client, model, prompt, num_tokens) for prompt in share]

    start_s = time.perf_counter()
    with ThreadPoolExecutor(len(shares)) as pool:
        timings = [timing for found in pool.map(send, shares) for timing in found]
    duration_s = time.perf_counter() - start_s
    return LoopTimes(timings=timings, tokens_per_s=sum(timing.num_completion_tokens for timing in timings) / duration_s)


def timed(client: Client, model: str, prompt: Sequence[int], num_tokens: int) -> Timing:
    """The timings of one greedy request for exactly `num_tokens` tokens."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    completion = Completion(client, "/v1/completions", body)
    for _ in completion:
        pass
    return completion.timing
