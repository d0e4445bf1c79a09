"""The compat lane: right for any model, with or without a usable cache, and safe to run again."""

import pytest
import torch

from tests.workers.engine.architectures import build
from tests.workers.engine.driving import Driver
from tests.workers.engine.parity import NUM_TOKENS, serve
from workers.engine.compat import CompatRunner, Memory
from workers.engine.lane import build_runner


@pytest.mark.parametrize("memory", list(Memory))
def test_every_memory_equals_generate(memory: Memory) -> None:
    served = serve("gptj")
    runner = CompatRunner(build("gptj"), num_pages=64, memory=memory)

    assert Driver(runner, chunk=7, preempt_at=4).generate(served.prompts[-3:], NUM_TOKENS) == served.expected[-3:]


def test_running_a_row_again_gives_the_same_logits() -> None:
    driver = Driver(CompatRunner(build("gptj"), num_pages=64, memory=Memory.CACHE))
    sequence = driver.sequence(list(range(2, 22)), 4)
    driver.step([sequence])
    row = driver.row(sequence)

    first, second = (driver.runner.forward([row])[0] for _ in range(2))

    # the second run computes the prefix anew in one forward, so sums may come in another order
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_a_raise_inside_a_forward_leaves_no_half_written_cache() -> None:
    model = build("gptj")
    driver = Driver(CompatRunner(model, num_pages=64, memory=Memory.CACHE))
    sequence = driver.sequence(list(range(2, 22)), 4)
    driver.step([sequence])
    row = driver.row(sequence)
    expected = driver.runner.forward([row])[0]
    sequence_again = driver.sequence(list(range(2, 22)), 4)
    driver.step([sequence_again])
    again = driver.row(sequence_again)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    hook = model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        driver.runner.forward([again])
    hook.remove()

    torch.testing.assert_close(driver.runner.forward([again])[0], expected, atol=1e-4, rtol=1e-4)


def test_all_logits_are_one_row_per_token() -> None:
    runner = CompatRunner(build("gptj"), num_pages=64, memory=Memory.CACHE)
    driver = Driver(runner)
    row = driver.row(driver.sequence([5, 6, 7], 1))

    (all_logits,) = runner.forward([type(row)(sequence=row.sequence, num_tokens=3, wants_all_logits=True)])
    runner.release(row.sequence)
    (last,) = runner.forward([row])

    assert all_logits.shape == (3, runner.vocab_size)
    torch.testing.assert_close(all_logits[-1:], last)


def test_compat_can_be_asked_for() -> None:
    choice = build_runner(
        build("llama"), lane="compat", max_model_len=64, max_num_seqs=2, kv_cache_bytes=2**20, verdict_dir=None
    )

    assert (choice.lane, choice.reason) == ("compat", "asked for")
