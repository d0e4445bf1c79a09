"""Isolation: whatever one row does to a step, the others do not notice."""

import math

import pytest

from tests.workers.engine.toy_runner import ToyRunner, request, run
from workers.engine.engine import Engine, EngineLimits
from workers.faults import parse_faults
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate

LIMITS = EngineLimits(max_model_len=128)


def eight() -> list[Generate]:
    return [request(f"r{i}", [i + 1, 2 * i + 1, 40], temperature=0.8, seed=i) for i in range(8)]


def without(request_id: str) -> dict[str, object]:
    expected = run(Engine(ToyRunner(), LIMITS), eight())
    del expected[request_id]
    return expected


def test_a_row_that_raises_fails_alone_within_log2_levels() -> None:
    runner = ToyRunner(raises=frozenset({"r5"}))
    engine = Engine(runner, LIMITS)

    results = run(engine, eight())

    # Each of log2(8) levels runs two halves, after the first attempt at the whole; then 7 more tokens.
    assert len(runner.forwards) == 1 + 2 * math.log2(8) + 7
    bad = results.pop("r5")
    assert bad.error is not None
    assert bad.error.code is WorkerErrorCode.INTERNAL
    assert "poison" not in bad.error.message
    assert results == without("r5")


def test_a_row_with_nan_logits_ends_alone_and_leaves_no_pages_behind() -> None:
    runner = ToyRunner(nans=frozenset({"r2"}), page_size=1)
    engine = Engine(runner, LIMITS)

    results = run(engine, eight())
    runner.nans = frozenset()
    retried = run(engine, [request("again", eight()[2].prompt_ids)])["again"]

    bad = results.pop("r2")
    assert bad.error is not None
    assert bad.error.code is WorkerErrorCode.NONFINITE_LOGITS
    assert results == without("r2")
    assert retried.num_cached_tokens == 0


@pytest.mark.parametrize("rule", ["worker.logits:nan@req=r3", "worker.logits:raise@req=r3"])
def test_an_injected_fault_fails_alone(rule: str) -> None:
    results = run(Engine(ToyRunner(), LIMITS, parse_faults(rule)), eight())

    assert results.pop("r3").finish_reason is FinishReason.ERROR
    assert results == without("r3")


def test_banning_every_token_is_an_error_of_that_request() -> None:
    banned = dict.fromkeys(range(97), -100.0)

    results = run(Engine(ToyRunner(), LIMITS), [*eight(), request("bad", [1, 2], logit_bias=banned)])

    bad = results.pop("bad")
    assert bad.error is not None
    assert bad.error.code is WorkerErrorCode.NO_VALID_TOKEN
    assert results == run(Engine(ToyRunner(), LIMITS), eight())


def test_out_of_memory_runs_fewer_rows_and_loses_nobody() -> None:
    results = run(Engine(ToyRunner(max_tokens_in_memory=5), LIMITS), eight())

    assert {key: value.token_ids for key, value in results.items()} == {
        key: value.token_ids for key, value in run(Engine(ToyRunner(), LIMITS), eight()).items()
    }


def test_a_prompt_too_large_for_memory_is_cut_further() -> None:
    item = request("a", list(range(60)))

    cut = run(Engine(ToyRunner(max_tokens_in_memory=16), LIMITS), [item])["a"]

    assert cut == run(Engine(ToyRunner(), LIMITS), [item])["a"]


def test_a_prompt_that_cannot_be_cut_and_does_not_fit_is_refused() -> None:
    runner = ToyRunner(max_tokens_in_memory=16, supports_chunks=False)

    results = run(Engine(runner, LIMITS), [request("big", list(range(60))), request("small", [1, 2])])

    assert results["big"].error is not None
    assert results["big"].error.code is WorkerErrorCode.INSUFFICIENT_MEMORY
    assert results["small"].finish_reason is FinishReason.LENGTH
