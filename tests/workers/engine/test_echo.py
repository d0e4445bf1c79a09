"""The echo model inside the real loop."""

import time

import pytest

from tests.workers.engine.toy_runner import finish, request, run
from workers.engine.echo import EchoRunner
from workers.engine.engine import Engine, EngineLimits
from workers.protocol.specs import EchoSpec


def engine_of(spec: EchoSpec | None = None) -> Engine:
    return Engine(EchoRunner(spec or EchoSpec(), num_pages=256), EngineLimits(max_model_len=1024, max_num_seqs=64))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_repeats_the_prompt(temperature: float) -> None:
    result = run(engine_of(), [request("a", [3, 1, 4, 1, 5], max_tokens=12, temperature=temperature)])["a"]

    assert result.token_ids == [3, 1, 4, 1, 5, 3, 1, 4, 1, 5, 3, 1]


def test_it_repeats_each_prompt_in_a_batch() -> None:
    requests = [request(f"r{i}", [i, i + 1], max_tokens=5, seed=i, temperature=1.0) for i in range(32)]

    results = run(engine_of(), requests)

    assert all(results[f"r{i}"].token_ids == [i, i + 1, i, i + 1, i] for i in range(32))


def test_prompt_logprobs_know_the_prompt() -> None:
    result = run(engine_of(), [request("a", [3, 1, 4], prompt_logprobs=1, max_tokens=1)])["a"]

    assert result.prompt_logprobs is not None
    assert [entry and entry.top[0][0] for entry in result.prompt_logprobs] == [None, 1, 4]


def test_the_pause_is_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses_s.append)
    engine = engine_of(EchoSpec(ttft_s=0.05, itl_s=0.02))
    for i in range(16):
        engine.add(request(f"r{i}", [1, 2, 3], max_tokens=4))

    finish(engine)

    assert pauses_s == [0.05, 0.02, 0.02, 0.02]


def test_it_repeats_only_what_follows_the_marker() -> None:
    spec = EchoSpec(repeats_after=7)
    requests = [request("a", [3, 7, 1, 7, 4, 5], max_tokens=5), request("b", [3, 1], max_tokens=3)]

    results = run(engine_of(spec), requests)

    assert results["a"].token_ids == [4, 5, 4, 5, 4]
    assert results["b"].token_ids == [3, 1, 3]
