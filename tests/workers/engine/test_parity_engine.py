"""The same tokens through the real engine: its scheduler, pages, prefix cache, preemption and sampler."""

import pytest

from tests.workers.engine.architectures import CONFIGS
from tests.workers.engine.parity import Served, serve
from tests.workers.engine.toy_runner import Result, finish, request
from tests.workers.engine.toy_runner import run as run_requests
from workers.engine.engine import Engine, EngineLimits
from workers.engine.lane import build_runner
from workers.engine.probe import set_attention
from workers.protocol.messages import StepStats

# 12 pages for eight sequences that need 21 in the end
LIMITS = EngineLimits(max_model_len=64, max_num_seqs=8, max_num_batched_tokens=40)


def engine_of(served: Served) -> Engine:
    """An engine that must preempt: its pool is sized for three sequences and eight will run."""
    set_attention(served.model, served.attention)
    choice = build_runner(
        served.model, lane="auto", max_model_len=64, max_num_seqs=3, kv_cache_bytes=2**24, verdict_dir=None
    )
    return Engine(choice.runner, LIMITS)


def run(engine: Engine, served: Served) -> tuple[dict[str, Result], list[StepStats]]:
    for number, prompt in enumerate(served.prompts):
        engine.add(request(str(number), prompt, max_tokens=len(served.expected[number])))
    return finish(engine)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_engine_equals_generate(name: str) -> None:
    served = serve(name)

    results, _ = run(engine_of(served), served)

    assert [results[str(number)].token_ids for number in range(len(served.prompts))] == served.expected


@pytest.mark.parametrize(
    ("name", "lane"), [("llama", "packed"), ("qwen3_next", "recurrent"), ("gptj", "compat")], ids=lambda value: value
)
def test_one_seed_gives_one_text_alone_and_in_a_batch(name: str, lane: str) -> None:
    """In a batch a sum may have another order, which moves a probability by 1e-6: too little to draw another token."""
    served = serve(name)
    assert served.choice.lane == lane
    probe, *others = (
        request(str(number), prompt, max_tokens=12, temperature=2.0, seed=100 + number)
        for number, prompt in reversed([*enumerate(served.prompts)])
    )

    alone = run_requests(engine_of(served), [probe])
    batched = run_requests(engine_of(served), [*others, probe])
    reseeded = run_requests(
        engine_of(served), [request("other", probe.prompt_ids, max_tokens=12, temperature=2.0, seed=1)]
    )

    assert batched[probe.request_id].token_ids == alone[probe.request_id].token_ids
    assert len(set(alone[probe.request_id].token_ids)) > 3
    assert reseeded["other"].token_ids != alone[probe.request_id].token_ids


def test_engine_equals_generate_through_preemptions() -> None:
    served = serve("llama", num_tokens=20)

    results, stats = run(engine_of(served), served)

    assert [results[str(number)].token_ids for number in range(len(served.prompts))] == served.expected
    assert stats[-1].preemptions_total > 0


def test_engine_equals_generate_on_cached_prefixes() -> None:
    served = serve("llama")
    engine = engine_of(served)
    run(engine, served)

    results, stats = run(engine, served)

    assert [results[str(number)].token_ids for number in range(len(served.prompts))] == served.expected
    assert stats[-1].prefix_hit_tokens_total > 0
