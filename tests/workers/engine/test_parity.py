"""Greedy tokens of the engine equal those of transformers' `generate`, whatever the architecture and the batch."""

import functools

import pytest

from tests.workers.engine.architectures import CONFIGS
from tests.workers.engine.parity import NUM_TOKENS, SITUATIONS, Served, alone, serve

RECURRENT = {"falcon_h1", "lfm2", "mamba2", "qwen3_next"}
served = functools.cache(serve)


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Served:
    """One architecture, built once for all tests of this file."""
    return served(request.param)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_architecture_but_gptj_gets_a_fast_lane(name: str) -> None:
    expected = "compat" if name == "gptj" else "recurrent" if name in RECURRENT else "packed"

    assert served(name).choice.lane == expected, served(name).choice.reason


def test_generated_tokens_are_not_all_the_same(model: Served) -> None:
    assert len({token for tokens in model.expected for token in tokens}) > NUM_TOKENS


def test_alone_equals_generate(model: Served) -> None:
    assert alone(model.choice, model.prompts[-2:]) == model.expected[-2:]


@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_ragged_batch_equals_generate(model: Served, situation: str) -> None:
    driver = SITUATIONS[situation](model.choice)

    assert driver.generate(model.prompts, NUM_TOKENS) == model.expected
