"""The prompts of `slimserve bench`: enough of them, each its own, elsewhere in the text at each run."""

import pytest

from app.cli.closed_loop import Workload, prompts
from app.cli.terminal import CommandFailed

WORKLOAD = Workload(num_prompt_tokens=8, num_completion_tokens=4, num_runs=2, streams=(1, 3))


def test_every_request_has_a_prompt_of_its_own_and_the_length_asked_for() -> None:
    found = list(prompts(range(WORKLOAD.num_text_tokens), WORKLOAD))

    assert len(found) == (2 + 1) * (1 + 3), "those that warm up too"
    assert {len(prompt) for prompt in found} == {8}
    assert len({prompt[0] for prompt in found}) == len(found)


def test_another_run_begins_elsewhere() -> None:
    assert len({next(prompts(range(10_000), WORKLOAD))[0] for _ in range(20)}) > 1


def test_text_with_too_few_tokens_is_refused_with_what_to_lower() -> None:
    with pytest.raises(CommandFailed, match="too few for 12 prompts of 8; lower --runs, --streams or --prompt-tokens"):
        prompts(range(WORKLOAD.num_text_tokens - 1), WORKLOAD)
