"""A request's numbers are the same to the bit wherever its prompt is cut, in any company, and if it is preempted."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from app import embedded
from tests.workers.engine.architectures import CONFIGS
from tests.workers.engine.toy_runner import Result, finish, request, run
from workers.checkpoint.load import load_model
from workers.device import cpu_has_fast_bf16
from workers.engine.engine import Engine, EngineLimits
from workers.engine.lane import build_runner
from workers.formats.prepacked import prepack_linears
from workers.protocol.messages import Generate

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Those of a load with dtype auto. Without bf16 instructions oneDNN emulates them, in whatever order.
DTYPES = [torch.float32, torch.bfloat16] if cpu_has_fast_bf16() else [torch.float32]
# Shorter than a page, one token more than pages, whole pages, several chunks of every budget.
PROMPT_LENGTHS = (3, 33, 48, 90, 17, 70)
NUM_TOKENS = 20
MAX_LEN = 128


def trained(dtype: torch.dtype) -> PreTrainedModel:
    loaded = load_model(
        embedded.model_path(),
        dtype=DTYPE_NAMES[dtype],
        device=torch.device("cpu"),
        on_progress=lambda done, total: None,
    )
    return loaded.model


def windowed(dtype: torch.dtype) -> PreTrainedModel:
    """Windows of 8 tokens, capped scores.

    torch computes what is left behind the last 32 numbers of a tensor by other code, with other last digits, so rows
    of any other width would not be the same alone and among others.
    """
    config = CONFIGS["gemma2"]()
    config.intermediate_size = 2 * 32
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


MODELS = {"trained": trained, "windowed": windowed}


def requests(vocab_size: int, num_tokens: int = NUM_TOKENS) -> list[Generate]:
    """Every second one wants the log-probabilities of its prompt, so of every row that it has in the model."""
    rng = random.Random(0)
    prompts = [[rng.randrange(3, vocab_size) for _ in range(length)] for length in PROMPT_LENGTHS]
    return [
        request(
            str(number),
            prompt,
            max_tokens=num_tokens,
            ignore_eos=True,
            logprobs=3,
            prompt_logprobs=3 if number % 2 else None,
        )
        for number, prompt in enumerate(prompts)
    ]


class Served:
    """A model in the packed lane, from which engines are made that differ in what they do at once."""

    def __init__(self, model: PreTrainedModel) -> None:
        prepack_linears(model)
        choice = build_runner(
            model, lane="packed", max_model_len=MAX_LEN, max_num_seqs=3, kv_cache_bytes=2**24, verdict_dir=None
        )
        self.runner = choice.runner

    def engine(self, *, budget: int = 2048) -> Engine:
        return Engine(self.runner, EngineLimits(max_model_len=MAX_LEN, max_num_seqs=8, max_num_batched_tokens=budget))

    def alone(self, num_tokens: int = NUM_TOKENS) -> dict[str, Result]:
        """Every request by itself, its prompt in one piece and nothing in the cache."""
        results: dict[str, Result] = {}
        for item in requests(self.runner.vocab_size, num_tokens):
            results |= run(self.engine(), [item])
        return results


@pytest.fixture(scope="module", params=[(name, dtype) for name in MODELS for dtype in DTYPES], ids=str)
def served(request: pytest.FixtureRequest) -> Served:
    name, dtype = request.param
    return Served(MODELS[name](dtype))


@pytest.fixture(scope="module")
def alone(served: Served) -> dict[str, Result]:
    return served.alone()


def numbers(results: dict[str, Result]) -> dict[str, object]:
    return {name: (r.token_ids, r.logprobs, r.prompt_logprobs) for name, r in sorted(results.items())}


@pytest.mark.parametrize("budget", [1, 16, 23, 50, 100, 2048])
def test_numbers_do_not_depend_on_where_prompts_are_cut(served: Served, alone: dict[str, Result], budget: int) -> None:
    engine = served.engine(budget=budget)

    together = run(engine, requests(served.runner.vocab_size))

    assert numbers(together) == numbers(alone)


def test_numbers_do_not_depend_on_preemption(served: Served) -> None:
    """The pool holds three at full length, and six begin."""
    engine = served.engine(budget=23)
    for item in requests(served.runner.vocab_size, MAX_LEN - max(PROMPT_LENGTHS)):
        engine.add(item)

    together, stats = finish(engine)

    assert stats[-1].preemptions_total > 0
    assert numbers(together) == numbers(served.alone(MAX_LEN - max(PROMPT_LENGTHS)))


def test_numbers_do_not_depend_on_what_the_prefix_cache_holds(served: Served, alone: dict[str, Result]) -> None:
    engine = served.engine()
    plain = [item for item in requests(served.runner.vocab_size) if item.params.prompt_logprobs is None]
    beginnings = [request(f"of {item.request_id}", [*item.prompt_ids[:20], 5], max_tokens=1) for item in plain]
    run(engine, beginnings)

    results = run(engine, plain)

    assert any(result.num_cached_tokens for result in results.values())
    assert numbers(results) == numbers({name: alone[name] for name in results})
