"""What the parity tests on CPU and on CUDA share: a served tiny model and what transformers' `generate` says."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.workers.engine.architectures import VOCAB_SIZE, build
from tests.workers.engine.driving import Driver
from workers.engine.lane import LaneChoice, build_runner

# One token, around a page's edge, more than one page, longer than every window; ragged in one batch.
PROMPT_LENGTHS = (1, 2, 5, 16, 17, 33, 37, 45)
NUM_TOKENS = 8

SITUATIONS: dict[str, Callable[[LaneChoice], Driver]] = {
    "batch-of-8": lambda choice: Driver(choice.runner),
    "chunked-scattered-pages": lambda choice: Driver(choice.runner, chunk=7, is_scattered=True),
    "preempted": lambda choice: Driver(choice.runner, chunk=16, preempt_at=5),
}


@dataclass(frozen=True)
class Served:
    """A model behind its lane, and for each prompt the greedy tokens that `generate` gave before."""

    choice: LaneChoice
    prompts: list[list[int]]
    expected: list[list[int]]


def serve(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Served:
    """Build architecture `name`, ask `generate`, then choose a lane."""
    model = build(name, dtype=dtype, device=device)
    rng = random.Random(1)
    prompts = [[rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
        expected.append(output[0, len(prompt) :].tolist())
    choice = build_runner(model, lane="auto", max_model_len=128, max_num_seqs=8, kv_cache_bytes=2**24, verdict_dir=None)
    return Served(choice, prompts, expected)


def alone(choice: LaneChoice, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of each prompt, one after the other."""
    driver = Driver(choice.runner)
    return [driver.generate([prompt], NUM_TOKENS)[0] for prompt in prompts]
