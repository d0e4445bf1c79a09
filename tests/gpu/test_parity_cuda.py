"""The parity tests of the engine on CUDA: token for token in fp32, by regret in bf16."""

import functools

import pytest
import torch

from tests.workers.engine.architectures import CONFIGS
from tests.workers.engine.parity import NUM_TOKENS, SITUATIONS, alone, largest_regret, serve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch built for it"),
]
served = functools.cache(serve)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_fp32_equals_generate(name: str, situation: str) -> None:
    model = served(name, dtype=torch.float32, device="cuda")

    assert SITUATIONS[situation](model.choice).generate(model.prompts, NUM_TOKENS) == model.expected


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("situation", list(SITUATIONS))
def test_bf16_only_ever_picks_a_token_as_good_as_the_best(name: str, situation: str) -> None:
    model = served(name, dtype=torch.bfloat16, device="cuda")

    # twice: the regret compares two logits, and both may be off by the allowed deviation
    assert largest_regret(model, SITUATIONS[situation](model.choice).generate(model.prompts, NUM_TOKENS)) <= 2


@pytest.mark.parametrize("name", list(CONFIGS))
def test_bf16_alone_only_ever_picks_a_token_as_good_as_the_best(name: str) -> None:
    model = served(name, dtype=torch.bfloat16, device="cuda")

    assert largest_regret(model, alone(model.choice, model.prompts)) <= 2
