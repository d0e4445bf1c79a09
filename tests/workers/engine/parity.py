"""What the parity tests on CPU and on CUDA share: a served tiny model and what transformers' `generate` says."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tests.workers.engine.architectures import VOCAB_SIZE, build
from tests.workers.engine.driving import Driver
from workers.engine.lane import LaneChoice, build_runner
from workers.engine.probe import attention_set
from workers.engine.verify import allowed_deviation

# One token, around a page's edge, more than one page, longer than every window; ragged in one batch.
PROMPT_LENGTHS = (1, 2, 5, 9, 16, 17, 20, 33)
NUM_TOKENS = 6

SITUATIONS: dict[str, Callable[[LaneChoice], Driver]] = {
    "batch-of-8": lambda choice: Driver(choice.runner),
    "chunked-scattered-pages": lambda choice: Driver(choice.runner, chunk=7, is_scattered=True),
    "preempted": lambda choice: Driver(choice.runner, chunk=16, preempt_at=5),
}


@dataclass(frozen=True)
class Served:
    """A model behind its lane, and for each prompt the greedy tokens that `generate` gave before.

    attention: the implementation with which `generate` ran.
    """

    model: PreTrainedModel
    attention: str
    choice: LaneChoice
    prompts: list[list[int]]
    expected: list[list[int]]


def serve(
    name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", num_tokens: int = NUM_TOKENS
) -> Served:
    """Build architecture `name`, ask `generate`, then choose a lane."""
    model = build(name, dtype=dtype, device=device)
    attention = model.config._attn_implementation
    rng = random.Random(1)
    prompts = [[rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
        expected.append(output[0, len(prompt) :].tolist())
    choice = build_runner(model, lane="auto", max_model_len=128, max_num_seqs=8, kv_cache_bytes=2**24, verdict_dir=None)
    return Served(model, attention, choice, prompts, expected)


def alone(choice: LaneChoice, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of each prompt, one after the other."""
    driver = Driver(choice.runner)
    return [driver.generate([prompt], NUM_TOKENS)[0] for prompt in prompts]


@torch.inference_mode()
def largest_regret(served: Served, outputs: list[list[int]]) -> float:
    """By how much the plain model prefers its own best token to the one chosen, at worst, in allowed deviations.

    The measure for low precision, where another order of summation may decide between two nearly equal tokens.
    """
    worst = 0.0
    with attention_set(served.model, served.attention):
        for prompt, output in zip(served.prompts, outputs, strict=True):
            ids = torch.tensor([prompt + output], device=served.model.device)
            logits = served.model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(output, device=logits.device)[:, None])[:, 0]
            regret = (logits.amax(dim=-1) - chosen) / logits.std(dim=-1)
            worst = max(worst, float(regret.max()) / allowed_deviation(served.model))
    return worst
