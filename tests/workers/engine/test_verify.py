"""Lanes are chosen by proof: a wrong runner is refused with a reason, and the verdict is remembered."""

from collections.abc import Sequence as Many
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.workers.engine.architectures import WINDOW, build
from tests.workers.engine.driving import Driver
from workers.engine.lane import LaneChoice, build_runner
from workers.engine.packed import PackedRunner
from workers.engine.probe import probe
from workers.engine.recurrent import RecurrentRunner
from workers.engine.refusal import LaneRefusedError
from workers.engine.sequence import Row
from workers.engine.verify import prove, take_samples
from workers.protocol.errors import WorkerError, WorkerErrorCode


def choose(model: PreTrainedModel, *, lane: str = "auto", verdict_dir: Path | None = None, **limits: int) -> LaneChoice:
    """build_runner with small defaults."""
    limits = {"max_model_len": 128, "max_num_seqs": 4, "kv_cache_bytes": 2**22, **limits}
    return build_runner(model, lane=lane, verdict_dir=None if verdict_dir is None else str(verdict_dir), **limits)


def test_a_window_one_token_too_short_is_refused() -> None:
    model = build("mistral")
    samples = take_samples(model, [WINDOW], 128)
    runner = PackedRunner(model, probe(model, 128), num_pages=16)
    prove(runner, model, samples)
    for pool in runner._attention._pools.values():
        pool.window = WINDOW - 1

    with pytest.raises(LaneRefusedError, match=r"logits differ by .* in (prefill|decode)"):
        prove(runner, model, samples)


def test_an_exception_in_the_proof_refuses_the_lane_with_its_text() -> None:
    model = build("llama")
    samples = take_samples(model, [], 128)
    runner = PackedRunner(model, probe(model, 128), num_pages=16)
    runner._attention._pools.clear()

    with pytest.raises(LaneRefusedError, match="KeyError"):
        prove(runner, model, samples)


def test_nan_never_passes() -> None:
    class Poisoned(PackedRunner):
        def forward(self, rows: Many[Row]) -> list[Tensor]:
            return [logits * torch.nan for logits in super().forward(rows)]

    model = build("llama")
    samples = take_samples(model, [], 128)

    with pytest.raises(LaneRefusedError, match="logits differ by inf"):
        prove(Poisoned(model, probe(model, 128), num_pages=16), model, samples)


def test_a_model_that_overflows_by_itself_is_not_loaded() -> None:
    model = build("llama")
    model.lm_head.weight.data.fill_(torch.inf)

    with pytest.raises(WorkerError, match="not finite in float32"):
        choose(model)


def test_models_without_exchangeable_attention_take_the_compat_lane() -> None:
    choice = choose(build("gptj"))

    assert choice.lane == "compat"
    assert "GPTJForCausalLM has no exchangeable attention" in choice.reason


def test_packed_lane_can_be_demanded() -> None:
    assert choose(build("llama"), lane="packed").lane == "packed"
    with pytest.raises(WorkerError, match="no packed lane") as caught:
        choose(build("gptj"), lane="packed")
    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_neighbour_stay_out_of_the_packed_lane(kind: str) -> None:
    model = build("phi3")
    model.config.rope_parameters = {"rope_type": kind, "original_max_position_embeddings": 64}

    choice = choose(model, max_model_len=65)

    assert choice.lane == "compat"
    assert f"{kind} rotary positions" in choice.reason
    assert choose(build("phi3"), max_model_len=65).lane == "packed"


def test_verdict_is_read_back_and_followed(tmp_path: Path) -> None:
    assert choose(build("llama"), verdict_dir=tmp_path).lane == "packed"
    (stored,) = tmp_path.iterdir()
    verdict = msgspec.json.decode(stored.read_bytes())
    stored.write_bytes(msgspec.json.encode({**verdict, "refusal": "as written by hand"}))

    choice = choose(build("llama"), verdict_dir=tmp_path)

    assert (choice.lane, choice.reason) == ("compat", "as written by hand")
    assert choose(build("qwen2"), verdict_dir=tmp_path).lane == "packed"


def test_a_torn_verdict_is_proven_anew(tmp_path: Path) -> None:
    choose(build("llama"), verdict_dir=tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:7])

    assert choose(build("llama"), verdict_dir=tmp_path).lane == "packed"
    assert stored.read_bytes().endswith(b"}")


@pytest.mark.parametrize("name", ["llama", "mamba2", "gptj"])
def test_a_cache_without_room_is_an_error_with_a_way_out(name: str) -> None:
    with pytest.raises(WorkerError, match="do not hold one sequence") as caught:
        choose(build(name), kv_cache_bytes=100)

    assert caught.value.code is WorkerErrorCode.INSUFFICIENT_MEMORY


def test_pools_never_grow_past_what_all_sequences_can_use() -> None:
    geometry = choose(build("falcon_h1"), max_model_len=100, max_num_seqs=3, kv_cache_bytes=2**30).runner.geometry

    assert (geometry.num_pages, geometry.num_slots) == (3 * 7, 3)


def test_prompts_enter_whole_where_chunks_are_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_later_chunks(self: RecurrentRunner, rows: Many[Row]) -> list[Tensor]:
        if any(row.start > 0 and row.num_tokens > 1 for row in rows):
            raise RuntimeError("no state in the middle of a prompt")
        return forward(self, rows)

    forward = RecurrentRunner.forward
    monkeypatch.setattr(RecurrentRunner, "forward", refuse_later_chunks)

    choice = choose(build("lfm2"))

    assert (choice.lane, choice.runner.geometry.supports_chunks) == ("recurrent", False)
    assert choice.reason.endswith("prompts enter whole")


@pytest.mark.parametrize(("name", "lane"), [("llama", "packed"), ("lfm2", "recurrent")])
def test_proof_fits_into_the_smallest_pools(name: str, lane: str) -> None:
    assert choose(build(name), max_num_seqs=1, max_model_len=48).lane == lane


@pytest.mark.parametrize("name", ["llama", "falcon_h1"])
def test_a_step_can_run_again_whole_and_in_parts(name: str) -> None:
    driver = Driver(choose(build(name)).runner)
    sequences = [driver.sequence(list(range(2, 2 + length)), 8) for length in (4, 9, 21)]
    driver.step(sequences)
    driver.step(sequences)
    rows = [driver.row(sequence) for sequence in sequences]

    first = driver.runner.forward(rows)
    again = driver.runner.forward(rows)
    parts = driver.runner.forward(rows[:1]) + driver.runner.forward(rows[1:])
    driver.step(sequences)
    driver.step(sequences)

    for whole, repeated, part in zip(first, again, parts, strict=True):
        torch.testing.assert_close(whole, repeated, atol=0, rtol=0)
        torch.testing.assert_close(whole, part, atol=1e-4, rtol=1e-4)


def test_a_slot_without_the_state_before_a_row_is_noticed() -> None:
    driver = Driver(choose(build("mamba2")).runner)
    sequence = driver.sequence([2, 3, 4], 4)
    driver.step([sequence])
    driver.runner.release(sequence)

    with pytest.raises(RuntimeError, match="does not hold the state"):
        driver.step([sequence])
