"""The engine as a whole, over a runner of exact arithmetic."""

import random
from typing import Any

import pytest

from tests.workers.engine.toy_runner import VOCAB_SIZE, Result, ToyRunner, finish, request, run
from workers.engine.engine import Engine, EngineLimits
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate

SAMPLED = {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "seed": 1234, "max_tokens": 24, "logprobs": 2}


def engine_of(runner: ToyRunner | None = None, **limits: Any) -> Engine:
    return Engine(runner or ToyRunner(), EngineLimits(**{"max_model_len": 128, **limits}))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(VOCAB_SIZE) for _ in range(source.randint(1, 30))] for _ in range(count)]


def serial(requests: list[Generate]) -> dict[str, Result]:
    """What each request gets from a fresh engine of its own."""
    return {item.request_id: run(engine_of(), [item])[item.request_id] for item in requests}


def test_one_seed_gives_one_text_alone_in_a_batch_and_after_preemption() -> None:
    probe = request("probe", [5, 6, 7, 8, 9], **SAMPLED)
    others = [request(f"r{i}", ids, **{**SAMPLED, "seed": i}) for i, ids in enumerate(prompts(7))]
    cramped = engine_of(ToyRunner(num_pages=18))

    alone = run(engine_of(), [probe])["probe"]
    batched = run(engine_of(), [*others, probe])["probe"]
    for item in [*others, probe]:
        cramped.add(item)
    preempted, stats = finish(cramped)

    assert len(set(alone.token_ids)) > 5
    assert batched == alone
    assert stats[-1].preemptions_total > 0
    assert preempted["probe"].token_ids == alone.token_ids
    assert preempted["probe"].logprobs == alone.logprobs


def test_different_seeds_give_different_texts() -> None:
    requests = [request(f"s{seed}", [1, 2, 3], **{**SAMPLED, "seed": seed}) for seed in range(8)]

    results = run(engine_of(), requests)

    assert len({tuple(result.token_ids) for result in results.values()}) == 8


def test_exhausted_pages_give_the_same_outputs_as_a_serial_run() -> None:
    requests = [request(f"r{i}", ids, max_tokens=40) for i, ids in enumerate(prompts(32))]
    engine = engine_of(ToyRunner(num_pages=20))

    for item in requests:
        engine.add(item)
    results, stats = finish(engine, max_steps=20_000)

    assert stats[-1].preemptions_total > 10
    assert stats[-1].kv_usage_ratio == 0
    for request_id, expected in serial(requests).items():
        assert results[request_id].token_ids == expected.token_ids
        assert results[request_id].finish_reason is FinishReason.LENGTH
        assert results[request_id].num_stamps == 1


@pytest.mark.parametrize("budget", [1, 3, 7, 64])
def test_chunked_prompts_give_the_same_outputs(budget: int) -> None:
    requests = [request(f"r{i}", ids, prompt_logprobs=3) for i, ids in enumerate(prompts(8))]

    results = run(engine_of(max_num_batched_tokens=budget), requests)

    for request_id, expected in serial(requests).items():
        assert results[request_id] == expected


def test_prompts_enter_whole_where_the_runner_cannot_cut_them() -> None:
    runner = ToyRunner(supports_chunks=False)
    requests = [request(f"r{i}", ids) for i, ids in enumerate(prompts(8))]

    results = run(engine_of(runner, max_num_batched_tokens=4), requests)

    first_rows = {row.sequence.request_id: row for rows in reversed(runner.forwards) for row in rows}
    assert all(row.num_tokens == row.sequence.num_prompt_tokens for row in first_rows.values())
    assert {key: value.token_ids for key, value in results.items()} == {
        key: value.token_ids for key, value in serial(requests).items()
    }


def test_a_shared_prefix_is_computed_once_and_changes_nothing() -> None:
    prefix = list(range(40))
    first, second = request("first", [*prefix, 1, 2]), request("second", [*prefix, 3])
    runner = ToyRunner()
    engine = engine_of(runner)

    run(engine, [first])
    num_before = len(runner.forwards)
    result = run(engine, [second])["second"]

    assert result.num_cached_tokens == 40
    assert runner.forwards[num_before][0].num_tokens == 1
    assert result.token_ids == serial([second])["second"].token_ids


def test_a_repeated_prompt_still_computes_its_last_token() -> None:
    runner = ToyRunner(page_size=4)
    engine = engine_of(runner)
    prompt = list(range(16))

    first = run(engine, [request("a", prompt)])["a"]
    second = run(engine, [request("b", prompt)])["b"]

    assert second.num_cached_tokens == 12
    assert second.token_ids == first.token_ids


def test_prompt_logprobs_take_no_part_in_the_prefix_cache() -> None:
    engine = engine_of()
    prompt = list(range(20))

    run(engine, [request("a", prompt)])
    result = run(engine, [request("b", prompt, prompt_logprobs=1)])["b"]

    assert result.num_cached_tokens == 0
    assert result.prompt_logprobs is not None
    assert [entry and entry.token_id for entry in result.prompt_logprobs] == [None, *prompt[1:]]


def test_cancel_frees_pages_at_once_and_says_so() -> None:
    engine = engine_of(ToyRunner(num_slots=4))
    engine.add(request("a", list(range(20)), max_tokens=100))
    engine.step()

    engine.cancel("a")
    engine.cancel("unknown")
    updates, stats = engine.step()

    assert [(update.request_id, update.finish_reason) for update in updates] == [("a", FinishReason.CANCELLED)]
    assert (stats.num_running, stats.num_waiting, stats.kv_usage_ratio) == (0, 0, 0)
    assert engine.is_idle


def test_cancel_of_a_waiting_request_leaves_the_running_one() -> None:
    engine = engine_of(max_num_seqs=1)
    engine.add(request("a", [1, 2]))
    engine.add(request("b", [3, 4]))
    engine.step()

    engine.cancel("b")
    results, _ = finish(engine)

    assert results["b"].finish_reason is FinishReason.CANCELLED
    assert results["a"].finish_reason is FinishReason.LENGTH


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    engine = engine_of(ToyRunner(num_pages=4, page_size=4))

    result = run(engine, [request("a", list(range(16)))], max_steps=1)["a"]

    assert result.error is not None
    assert result.error.code is WorkerErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert result.error.message.startswith(
        "This model's maximum context length is 16 tokens. However, you requested 17"
    )


def test_the_last_free_position_gives_one_token() -> None:
    result = run(engine_of(ToyRunner(num_pages=4, page_size=4)), [request("a", list(range(15)))])["a"]

    assert len(result.token_ids) == 1
    assert result.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"temperature": float("nan")}, "temperature", id="nan-temperature"),
        pytest.param({"temperature": -1.0}, "temperature", id="negative-temperature"),
        pytest.param({"top_p": 0.0}, "top_p", id="top-p-0"),
        pytest.param({"top_p": float("nan")}, "top_p", id="nan-top-p"),
        pytest.param({"top_k": -1}, "top_k", id="top-k"),
        pytest.param({"min_p": 1.5}, "min_p", id="min-p"),
        pytest.param({"repetition_penalty": 0.0}, "repetition_penalty", id="repetition-penalty-0"),
        pytest.param({"presence_penalty": 2.01}, "presence_penalty", id="presence-penalty"),
        pytest.param({"frequency_penalty": float("inf")}, "frequency_penalty", id="inf-frequency-penalty"),
        pytest.param({"logit_bias": {VOCAB_SIZE: 1.0}}, "logit_bias", id="bias-id-out-of-vocabulary"),
        pytest.param({"logit_bias": {1: float("nan")}}, "logit_bias", id="nan-bias"),
        pytest.param({"stop_token_ids": (-1,)}, "stop_token_ids", id="negative-stop-id"),
        pytest.param({"logprobs": 21}, "logprobs", id="logprobs-21"),
        pytest.param({"prompt_logprobs": -1}, "prompt_logprobs", id="prompt-logprobs"),
        pytest.param({"min_tokens": 9}, "min_tokens", id="min-tokens-above-max"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="negative-max-tokens"),
        pytest.param({"prompt": []}, "prompt is empty", id="empty-prompt"),
        pytest.param({"prompt": [1, VOCAB_SIZE]}, "vocabulary", id="id-out-of-vocabulary"),
        pytest.param({"prompt": [-1]}, "vocabulary", id="negative-id"),
        pytest.param({"prompt": [2**62]}, "vocabulary", id="huge-id"),
    ],
)
def test_a_bad_request_gets_an_error_and_hurts_nobody(changes: dict[str, Any], word: str) -> None:
    prompt = changes.pop("prompt", [1, 2, 3])
    good = request("good", [4, 5, 6])

    results = run(engine_of(), [good, request("bad", prompt, **changes)])

    assert results["bad"].error is not None
    assert results["bad"].error.code is WorkerErrorCode.INVALID_REQUEST
    assert word in results["bad"].error.message
    assert results["good"] == serial([good])["good"]


def test_a_second_request_with_a_live_id_is_ignored() -> None:
    engine = engine_of()
    item = request("a", [1, 2, 3])

    results = run(engine, [item, item])

    assert results == serial([item])


def test_eos_ends_a_sequence_and_is_included() -> None:
    free = run(engine_of(), [request("a", [1, 2, 3])])["a"].token_ids
    limits = {"eos_token_ids": frozenset({free[3]})}

    stopped = run(engine_of(**limits), [request("a", [1, 2, 3])])["a"]
    ignored = run(engine_of(**limits), [request("a", [1, 2, 3], ignore_eos=True)])["a"]
    by_id = run(engine_of(), [request("a", [1, 2, 3], stop_token_ids=(free[3],))])["a"]

    end = free.index(free[3]) + 1
    assert (stopped.token_ids, stopped.finish_reason) == (free[:end], FinishReason.STOP)
    assert (ignored.token_ids, ignored.finish_reason) == (free, FinishReason.LENGTH)
    assert by_id == stopped


def test_min_tokens_holds_eos_back() -> None:
    free = run(engine_of(), [request("a", [1, 2, 3])])["a"].token_ids
    engine = engine_of(eos_token_ids=frozenset(free))

    result = run(engine, [request("a", [1, 2, 3], min_tokens=5)])["a"]

    assert len(result.token_ids) >= 5
    assert not set(result.token_ids[:5]) & set(free)


def test_max_tokens_0_scores_the_prompt_and_ends() -> None:
    result = run(engine_of(), [request("a", [1, 2, 3, 4], max_tokens=0, prompt_logprobs=2)])["a"]

    assert result.token_ids == []
    assert result.finish_reason is FinishReason.LENGTH
    assert result.prompt_logprobs is not None
    assert [entry and len(entry.top) for entry in result.prompt_logprobs] == [None, 2, 2, 2]


def test_slots_are_never_shared_and_all_come_back() -> None:
    runner = ToyRunner(num_slots=3, num_pages=24)
    engine = engine_of(runner)
    for i, ids in enumerate(prompts(12)):
        engine.add(request(f"r{i}", ids, max_tokens=20))

    slots_seen: set[int] = set()
    while not engine.is_idle:
        engine.step()
        slots = [row.sequence.slot for row in runner.forwards[-1] if row.sequence.finish_reason is None]
        held = [slot for slot in slots if slot is not None]
        assert len(held) == len(set(held))
        slots_seen.update(held)

    assert slots_seen <= {0, 1, 2}
    assert len(slots_seen) == 3
    assert len(runner.released) >= 12


def test_statistics_count_what_happened() -> None:
    engine = engine_of()
    engine.add(request("a", [1] * 10, max_tokens=3))
    engine.add(request("b", [2] * 5, max_tokens=2))

    _, stats = finish(engine)

    assert [(s.num_prefill_tokens, s.num_decode_tokens, s.num_running) for s in stats] == [
        (15, 0, 2),
        (0, 2, 1),
        (0, 1, 0),
    ]
    assert stats[0].kv_usage_ratio == pytest.approx((3 + 2) / 64)
