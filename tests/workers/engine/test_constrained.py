"""Grammars in the engine: enforced in every lane and batch, beside every other sampling option."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.workers.engine.architectures import VOCAB_SIZE, build
from tests.workers.engine.character_tokenizer import EOS_ID, save_character_tokenizer, text_of
from tests.workers.engine.toy_runner import Result, ToyRunner, finish, request, run
from workers.engine.engine import Engine, EngineLimits
from workers.engine.lane import build_runner
from workers.engine.runner import Runner
from workers.faults import Faults, parse_faults
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import FinishReason, Generate
from workers.protocol.specs import Grammar

DATE = Grammar(kind="regex", text=r"[0-9]{4}-[01][0-9]")
WORD = Grammar(kind="regex", text="[a-z]{3,6}")
ENDLESS = Grammar(kind="regex", text="[a-z]*")
PERSON = Grammar(
    kind="json_schema",
    text=json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^[a-z]{1,8}$"}, "age": {"enum": [7, 70, 77]}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
)
SAMPLED = {"temperature": 1.5, "max_tokens": 120}


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> str:
    return save_character_tokenizer(tmp_path)


def engine_of(
    tokenizer_path: str | None, runner: Runner | None = None, *, faults: str = "", eos: frozenset[int] = frozenset({2})
) -> Engine:
    limits = EngineLimits(max_model_len=160, eos_token_ids=eos)
    rules: Faults = parse_faults(faults)
    return Engine(runner or ToyRunner(num_pages=256), limits, rules, tokenizer_path=tokenizer_path)


def is_date(text: str) -> bool:
    return re.fullmatch(DATE.text, text) is not None


def is_person(text: str) -> bool:
    value = json.loads(text)
    return re.fullmatch("[a-z]{1,8}", value["name"]) is not None and value["age"] in (7, 70, 77) and len(value) == 2


def mixed_requests() -> list[Generate]:
    """Eight sequences, of which every other one is free."""
    kinds: list[dict[str, Any]] = [{"grammar": DATE}, {}, {"grammar": PERSON}, {"temperature": 0.0}]
    return [request(f"r{i}", [5 + i, 6, 7], **{**SAMPLED, "seed": i, **kinds[i % 4]}) for i in range(8)]


def check(results: dict[str, Result]) -> None:
    for name, is_right in {"r0": is_date, "r2": is_person, "r4": is_date, "r6": is_person}.items():
        assert results[name].finish_reason is FinishReason.STOP
        assert is_right(text_of(results[name].token_ids))
    for name in ("r1", "r3", "r5", "r7"):
        assert results[name].error is None


@pytest.mark.parametrize(
    ("name", "lane"), [("llama", "packed"), ("qwen3_next", "recurrent"), ("gptj", "compat")], ids=lambda value: value
)
def test_grammar_holds_in_every_lane_and_leaves_its_neighbours_alone(tokenizer_path: str, name: str, lane: str) -> None:
    choice = build_runner(
        build(name), lane="auto", max_model_len=160, max_num_seqs=8, kv_cache_bytes=2**24, verdict_dir=None
    )
    assert (choice.lane, choice.runner.vocab_size) == (lane, VOCAB_SIZE)

    results = run(engine_of(tokenizer_path, choice.runner), mixed_requests())
    alone = [run(engine_of(tokenizer_path, choice.runner), [item]) for item in mixed_requests()]

    check(results)
    assert {key: one.token_ids for result in alone for key, one in result.items()} == {
        key: one.token_ids for key, one in results.items()
    }


def test_preempted_sequence_goes_on_where_its_grammar_was(tokenizer_path: str) -> None:
    requests = mixed_requests()
    free = run(engine_of(tokenizer_path), requests)

    engine = engine_of(tokenizer_path, ToyRunner(num_pages=42))
    for item in requests:
        engine.add(item)
    results, stats = finish(engine, max_steps=20_000)

    assert stats[-1].preemptions_total > 0
    check(results)
    assert {key: one.token_ids for key, one in results.items()} == {key: one.token_ids for key, one in free.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="alone"),
        pytest.param({"top_k": 3, "top_p": 0.4, "min_p": 0.1}, id="filters"),
        pytest.param({"repetition_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0}, id="penalties"),
        pytest.param({"logit_bias": {50: 100.0, EOS_ID: 100.0}}, id="bias"),
        pytest.param({"min_tokens": 100, "stop_token_ids": (90,)}, id="min-tokens"),
        pytest.param({"ignore_eos": True}, id="ignore-eos"),
    ],
)
def test_other_sampling_options_choose_among_what_the_grammar_allows(
    tokenizer_path: str, options: dict[str, Any], temperature: float
) -> None:
    requests = [
        request(str(seed), [seed, 9], temperature=temperature, max_tokens=120, seed=seed, grammar=PERSON, **options)
        for seed in range(6)
    ]

    results = run(engine_of(tokenizer_path), requests)

    for result in results.values():
        assert (result.finish_reason, result.error) == (FinishReason.STOP, None)
        assert is_person(text_of(result.token_ids))


@pytest.mark.parametrize(
    ("text", "ends_with"),
    [
        pytest.param(f"start: (/[a-c]/ | <[{EOS_ID}]>)* /!/", "!", id="another-way"),
        pytest.param(f"start: /[a-c]/ <[{EOS_ID}]>", "", id="no-other-way"),
    ],
)
def test_end_token_within_a_grammar_does_not_end_it_early(tokenizer_path: str, text: str, ends_with: str) -> None:
    grammar = Grammar(kind="lark", text=text)
    options: dict[str, Any] = {"logit_bias": {EOS_ID: 100.0}, "max_tokens": 120, "temperature": 1.5}

    requests = [request(str(seed), [4, 5], grammar=grammar, seed=seed, **options) for seed in range(6)]

    for result in run(engine_of(tokenizer_path), requests).values():
        assert (result.finish_reason, result.error) == (FinishReason.STOP, None)
        assert result.token_ids[-1] == (ord(ends_with) - 29 if ends_with else EOS_ID)


def test_end_of_the_grammar_is_the_end_and_its_last_token_is_text(tokenizer_path: str) -> None:
    result = run(engine_of(tokenizer_path), [request("a", [4, 5], grammar=DATE, **SAMPLED)])["a"]

    assert result.finish_reason is FinishReason.STOP
    assert result.completes_grammar
    assert len(result.token_ids) == len("2026-11")


def test_end_token_where_more_could_follow_is_no_text(tokenizer_path: str) -> None:
    bias = {EOS_ID: 100.0}
    result = run(engine_of(tokenizer_path), [request("a", [4, 5], grammar=WORD, max_tokens=20, logit_bias=bias)])["a"]

    assert (result.token_ids[-1], result.finish_reason) == (EOS_ID, FinishReason.STOP)
    assert not result.completes_grammar
    assert re.fullmatch("[a-z]{3}", text_of(result.token_ids))


def test_end_tokens_of_the_request_end_a_grammar_too(tokenizer_path: str) -> None:
    bias = {1: 100.0}
    params = {"grammar": WORD, "max_tokens": 20, "logit_bias": bias, "stop_token_ids": (1,)}

    result = run(engine_of(tokenizer_path), [request("a", [4, 5], **params)])["a"]

    assert (result.token_ids[-1], result.finish_reason) == (1, FinishReason.STOP)
    assert re.fullmatch("[a-z]{3}", text_of(result.token_ids))


def test_max_tokens_cuts_a_grammar(tokenizer_path: str) -> None:
    result = run(engine_of(tokenizer_path), [request("a", [4, 5], grammar=DATE, max_tokens=4)])["a"]

    assert (result.finish_reason, result.completes_grammar) == (FinishReason.LENGTH, False)
    assert re.fullmatch("[0-9]{4}", text_of(result.token_ids))


def test_last_token_that_completes_the_grammar_is_no_cut(tokenizer_path: str) -> None:
    result = run(engine_of(tokenizer_path), [request("a", [4, 5], grammar=DATE, max_tokens=7)])["a"]

    assert result.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("options", [{"min_tokens": 5}, {"ignore_eos": True}], ids=["min-tokens", "ignore-eos"])
def test_end_is_put_off_while_the_grammar_has_another_way_on(tokenizer_path: str, options: dict[str, Any]) -> None:
    bias = {EOS_ID: 100.0}
    params = {"grammar": WORD, "max_tokens": 20, "logit_bias": bias, **options}

    result = run(engine_of(tokenizer_path), [request("a", [4, 5], **params)])["a"]

    assert result.finish_reason is FinishReason.STOP
    assert len(text_of(result.token_ids)) == options.get("min_tokens", 6)


def test_end_is_not_put_off_where_nothing_else_is_left(tokenizer_path: str) -> None:
    """The empty text is all that matches: no token, no way to reach min_tokens."""
    empty = Grammar(kind="regex", text="")

    result = run(engine_of(tokenizer_path), [request("a", [4, 5], grammar=empty, min_tokens=3)])["a"]

    assert (result.token_ids, result.finish_reason) == ([EOS_ID], FinishReason.STOP)


def test_logprobs_are_those_of_the_free_model(tokenizer_path: str) -> None:
    free = run(engine_of(tokenizer_path), [request("a", [4, 5], max_tokens=1, logprobs=20)])["a"]

    held = run(engine_of(tokenizer_path), [request("a", [4, 5], max_tokens=1, logprobs=20, grammar=DATE)])["a"]

    assert held.logprobs[0].top == free.logprobs[0].top
    assert held.token_ids != free.token_ids
    assert held.logprobs[0].token_id == held.token_ids[0]


def test_model_without_an_end_token_stops_at_the_end_of_the_grammar(tokenizer_path: str) -> None:
    engine = engine_of(tokenizer_path, eos=frozenset())

    result = run(engine, [request("a", [4, 5], grammar=DATE, **SAMPLED)])["a"]

    assert result.finish_reason is FinishReason.STOP
    assert is_date(text_of(result.token_ids))


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        pytest.param(Grammar(kind="regex", text="("), "does not compile", id="refused-at-once"),
        pytest.param(Grammar(kind="regex", text="b" * (2**16 + 1)), "65536 bytes", id="too-long"),
        pytest.param(Grammar(kind="regex", text="(b?){500}b{500}"), "any further", id="too-complex-on-the-way"),
        pytest.param(Grammar(kind="regex", text="b\u4e2d"), "any further", id="no-token-for-it"),
    ],
)
def test_failing_grammar_fails_its_request_alone(tokenizer_path: str, grammar: Grammar, said: str) -> None:
    requests = mixed_requests()

    results = run(engine_of(tokenizer_path), [*requests, request("bad", [4, 5], grammar=grammar, **SAMPLED)])

    assert results["bad"].error is not None
    assert results["bad"].error.code is WorkerErrorCode.INVALID_REQUEST
    assert said in results["bad"].error.message
    check(results)


def test_crash_of_a_matcher_fails_its_request_alone(tokenizer_path: str) -> None:
    requests = mixed_requests()
    engine = engine_of(tokenizer_path, faults="worker.grammar:raise@req=r2")

    results = run(engine, requests)

    assert results["r2"].error is not None
    assert results["r2"].error.code is WorkerErrorCode.INTERNAL
    assert is_date(text_of(results["r0"].token_ids))
    assert is_person(text_of(results["r6"].token_ids))


def test_endless_grammar_is_cut_or_ended_like_any_text(tokenizer_path: str) -> None:
    requests = [request(str(seed), [4, seed], grammar=ENDLESS, seed=seed, **SAMPLED) for seed in range(10)]

    results = run(engine_of(tokenizer_path), requests)

    reasons = {result.finish_reason for result in results.values()}
    assert reasons <= {FinishReason.STOP, FinishReason.LENGTH}
    assert all(re.fullmatch("[a-z]*", text_of(result.token_ids)) for result in results.values())


def test_engine_without_a_tokenizer_refuses_grammars_only() -> None:
    results = run(engine_of(None), [request("a", [4, 5], grammar=DATE), request("b", [4, 5])])

    assert results["a"].error is not None
    assert "tokenizer.json" in results["a"].error.message
    assert results["b"].error is None
