"""Chunk sizes follow measured time."""

import pytest

from workers.engine.chunking import ALONE_TARGET_S, DECODING_TARGET_S, ChunkPacer

PREFILL_TOKEN_S = 0.002
STEP_S = 0.03


def paced(
    num_steps: int, *, has_decodes: bool, max_tokens: int = 2048, step_s: float = STEP_S
) -> tuple[ChunkPacer, int]:
    """A machine whose steps take step_s and PREFILL_TOKEN_S per prompt token. Returns the pacer and its last chunk."""
    pacer = ChunkPacer(max_tokens=max_tokens, is_timed=True)
    chunk = 0
    for _ in range(num_steps):
        pacer.observe(num_prefill_tokens=0, step_s=step_s)
        chunk = pacer.num_tokens(has_decodes=has_decodes)
        pacer.observe(num_prefill_tokens=chunk, step_s=step_s + chunk * PREFILL_TOKEN_S)
    return pacer, chunk


def test_beside_decoding_streams_a_chunk_takes_the_target_time() -> None:
    _, chunk = paced(40, has_decodes=True)

    assert chunk * PREFILL_TOKEN_S == pytest.approx(DECODING_TARGET_S, rel=0.15)


def test_where_decoding_is_slow_already_a_chunk_may_take_as_long_as_a_step() -> None:
    _, chunk = paced(40, has_decodes=True, step_s=0.4)

    assert chunk * PREFILL_TOKEN_S == pytest.approx(0.4, rel=0.15)


def test_short_prompts_do_not_make_later_chunks_small() -> None:
    pacer = ChunkPacer(max_tokens=2048, is_timed=True)
    for _ in range(10):
        pacer.observe(num_prefill_tokens=1, step_s=STEP_S + PREFILL_TOKEN_S)
        pacer.observe(num_prefill_tokens=0, step_s=STEP_S)

    assert pacer.num_tokens(has_decodes=False) * PREFILL_TOKEN_S == pytest.approx(ALONE_TARGET_S, rel=0.15)


def test_alone_a_prompt_gets_larger_chunks() -> None:
    _, chunk = paced(40, has_decodes=False)

    assert chunk * PREFILL_TOKEN_S == pytest.approx(ALONE_TARGET_S, rel=0.15)


def test_the_budget_is_never_exceeded() -> None:
    _, chunk = paced(40, has_decodes=False, max_tokens=100)

    assert chunk == 100


def test_the_first_chunk_is_careful() -> None:
    assert ChunkPacer(max_tokens=2048, is_timed=True).num_tokens(has_decodes=False) == 256


def test_a_very_slow_machine_still_advances() -> None:
    pacer = ChunkPacer(max_tokens=2048, is_timed=True)
    pacer.observe(num_prefill_tokens=256, step_s=256.0)

    assert pacer.num_tokens(has_decodes=True) == 16


def test_an_accelerator_always_gets_the_whole_budget() -> None:
    pacer = ChunkPacer(max_tokens=2048, is_timed=False)
    pacer.observe(num_prefill_tokens=256, step_s=256.0)

    assert pacer.num_tokens(has_decodes=True) == 2048


def test_out_of_memory_halves_the_budget() -> None:
    pacer = ChunkPacer(max_tokens=2048, is_timed=False)

    pacer.shrink()

    assert pacer.num_tokens(has_decodes=False) == 1024
