"""The method `auto` on tiny models: what it measures, what it keeps to, where it goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.compress.layer_jobs import with_exact_products
from tests.workers.tiny import save_tiny_model
from workers.auto import sensitivity, trials
from workers.auto.search import compress_within_budget
from workers.checkpoint.load import load_model
from workers.compress.pipeline import compress_checkpoint
from workers.formats.swap import quantized_linears
from workers.measure.quality import kl_divergence, log_probs, window_logits
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipes import AutoRecipe, Calibration, GptqRecipe, Recipe
from workers.protocol.specs import CompressSpec

IDS = torch.randint(3, 120, (8, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
HELDOUT = torch.randint(3, 120, (3, 24), generator=torch.Generator().manual_seed(2), dtype=torch.int32)


def spec_of(folder: Path, base: Path, recipe: Recipe, output: str = "out") -> CompressSpec:
    save_file({"token_ids": IDS}, folder / "ids.safetensors")
    save_file({"token_ids": HELDOUT}, folder / "heldout.safetensors")
    return CompressSpec(
        base_path=str(base),
        output_dir=str(folder / output),
        base="tiny",
        variant="tiny/auto",
        method="auto",
        recipe=recipe,
        calibration=Calibration(
            token_ids_path=str(folder / "ids.safetensors"), heldout_ids_path=str(folder / "heldout.safetensors")
        ),
        device="cpu",
    )


def run(
    spec: CompressSpec, report: Callable[[JobProgress], None] = lambda _: None, poll: Callable[[], None] = lambda: None
) -> CompressResult:
    return compress_within_budget(spec, report, poll)


def divergence(base: Any, other: Any) -> float:
    """KL(base || other), mean nats per token of the held-out windows, of two whole models."""
    windows = HELDOUT.long()
    return float(
        kl_divergence(log_probs(window_logits(base, windows)), log_probs(window_logits(other, windows))).mean()
    )


def loaded(folder: Path) -> Any:
    return load_model(folder, dtype="fp32", device=torch.device("cpu"), on_progress=lambda *_: None).model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


def test_variant_keeps_the_budget_and_is_what_was_measured(tmp_path: Path, base: Path) -> None:
    spec = spec_of(tmp_path, base, AutoRecipe(bits=5.0, group_size=32))

    result = run(spec)

    weights = load_file(tmp_path / "out" / "model.safetensors")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    num_weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3)
    kept = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in weights.items()
        if "_proj" not in name or name.endswith("weight_shape")
    )
    assert result.weight_bytes == num_bytes == result.trials[0].num_bytes
    assert 8 * (num_bytes - kept) / num_weights <= 5.0
    assert result.trials[0].kl_mean == min(one.kl_mean for one in result.trials)
    variant = loaded(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = config["config_groups"].values()
    bits = {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]}
    assert bits == {name: one.num_bits for one in result.allocation for name in one.modules if one.num_bits != 16}
    assert len(set(bits.values())) > 1
    assert quantized_linears(variant).keys() == bits.keys()
    assert divergence(loaded(base), with_exact_products(variant)) == pytest.approx(result.trials[0].kl_mean, rel=1e-3)
    assert {file.name for file in tmp_path.iterdir()} == {"base", "out", "ids.safetensors", "heldout.safetensors"}


def test_sensitivity_is_that_of_the_whole_base_with_one_unit_changed(tmp_path: Path, base: Path) -> None:
    result = run(spec_of(tmp_path, base, AutoRecipe(bits=5.0, group_size=32)))
    # Before the first layer nothing is compressed: there a uniform variant's weights are those of the pass.
    uniform = spec_of(tmp_path, base, GptqRecipe(num_bits=3, group_size=32, true_sequential=False), "uniform")
    compress_checkpoint(msgspec.structs.replace(uniform, layout="pack-quantized"), lambda _: None, lambda: None)
    rounded = with_exact_products(loaded(tmp_path / "uniform"))

    for one in (unit for unit in result.allocation if ".layers.0." in unit.modules[0]):
        changed = loaded(base)
        for name in one.modules:
            changed.get_submodule(name).weight.data = rounded.get_submodule(name).weight.data
        assert one.kl_by_bits[3] == pytest.approx(divergence(loaded(base), changed), rel=1e-3), one.modules


def test_units_are_linears_that_read_the_same_numbers_and_all_experts_of_a_layer(tmp_path: Path) -> None:
    mixtral = save_tiny_model(tmp_path / "base", "mixtral")

    result = run(spec_of(tmp_path, mixtral, AutoRecipe(bits=5.0, group_size=32, candidate_bits=(4, 8))))

    for layer in ("model.layers.0", "model.layers.1"):
        attention = [f"{layer}.self_attn.{name}_proj" for name in "qkvo"]
        units = [one.modules for one in result.allocation if one.modules[0].startswith(f"{layer}.")]
        assert units == [attention[:3], attention[3:], [f"{layer}.mlp.experts.*"]]


def test_uniform_allocation_is_compared_and_has_the_bytes_of_the_uniform_variant(tmp_path: Path, base: Path) -> None:
    uniform = msgspec.structs.replace(
        spec_of(tmp_path, base, GptqRecipe(num_bits=4, group_size=32), "uniform"), layout="pack-quantized"
    )
    made = compress_checkpoint(uniform, lambda _: None, lambda: None)

    result = run(spec_of(tmp_path, base, AutoRecipe(max_bytes=made.weight_bytes, group_size=32)))

    (own,) = [one for one in result.trials if one.name == "uniform 4 bits"]
    assert own.num_bytes == made.weight_bytes
    assert result.weight_bytes <= made.weight_bytes
    rounded = with_exact_products(loaded(tmp_path / "uniform"))
    assert own.kl_mean == pytest.approx(divergence(loaded(base), rounded), rel=1e-3)


def test_budget_with_room_to_spare_takes_the_widest_candidate(tmp_path: Path, base: Path) -> None:
    result = run(spec_of(tmp_path, base, AutoRecipe(max_bytes=2**50, group_size=32, candidate_bits=(4, 8))))

    assert {one.num_bits for one in result.allocation} == {8}
    assert [one.name for one in result.trials] == ["uniform 8 bits"]


class StoppedError(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("phase", [sensitivity.PHASE, trials.PHASE, "writing"])
def test_job_goes_on_where_it_was_and_ends_the_same(tmp_path: Path, phase: str) -> None:
    base = save_tiny_model(tmp_path / "deeper", num_hidden_layers=3)
    recipe = AutoRecipe(bits=5.0, group_size=32, candidate_bits=(3, 4, 8))
    whole = spec_of(tmp_path, base, recipe, "whole")
    run(whole)
    cut = spec_of(tmp_path, base, recipe, "cut")
    ticks: list[JobProgress] = []

    def stop(progress: JobProgress) -> None:
        ticks.append(progress)
        if progress.phase == phase and progress.done > progress.total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(cut, stop)
    before = len(ticks)
    assert not (tmp_path / "cut").exists()

    run(cut, ticks.append)

    again = [one for one in ticks[before:] if one.phase == sensitivity.PHASE]
    expected = 1 if phase == sensitivity.PHASE else 0
    assert len(again) == expected, [one.done for one in again]
    if phase == "writing":
        assert not [one for one in ticks[before:] if one.phase == trials.PHASE]
    files = [json.loads((tmp_path / name / "manifest.json").read_text())["files"] for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_manifest_and_card_have_the_table(tmp_path: Path, base: Path) -> None:
    result = run(spec_of(tmp_path, base, AutoRecipe(bits=5.0, group_size=32)))

    recipe = json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert (recipe["method"], recipe["bits"], recipe["layout"]) == ("auto", 5.0, "pack-quantized")
    assert recipe["allocation"]["units"] == msgspec.to_builtins(result.allocation, str_keys=True)
    assert "`auto-5bits-g32`" in card
    assert all(f"| {one.num_bits} | {one.kl:.6f} | {one.num_bytes:,} |" in card for one in result.allocation)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (AutoRecipe(max_bytes=1000, group_size=32), ["1,000 bytes", "smallest", "[2, 3, 4, 8, 16]"]),
        (AutoRecipe(bits=2.0, group_size=32, candidate_bits=(4, 8)), ["2.000 bits", "4.5"]),
        (AutoRecipe(bits=32.0, group_size=32), ["room for the base as it is"]),
    ],
    ids=["bytes", "bits", "too-much"],
)
def test_budget_that_cannot_be_kept_names_what_can(
    tmp_path: Path, base: Path, recipe: AutoRecipe, said: list[str]
) -> None:
    with pytest.raises(WorkerError) as refused:
        run(spec_of(tmp_path, base, recipe))

    assert refused.value.code is WorkerErrorCode.INVALID_REQUEST
    assert all(part in refused.value.message for part in said), refused.value.message
    assert not (tmp_path / "out").exists()
