"""Layer by layer with calibration: a job that goes on ends as one that was never interrupted."""

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.workers.compress.layer_jobs import (
    GPTQ,
    IDS,
    TinyJob,
    child,
    compress,
    compress_and_die,
    compress_and_time,
    run_and_die_behind_the_first_layer,
    with_exact_products,
)
from tests.workers.tiny import save_tiny_model
from workers.checkpoint.load import load_model
from workers.compress import one_layer
from workers.compress.staged_layers import StagedLayers
from workers.compress.walk import LayerWalk
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import (
    AwqRecipe,
    Calibration,
    GptqRecipe,
    Override,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)
from workers.protocol.specs import CompressSpec

DEADLINE_S = 120


def hashes(folder: Path) -> list[str]:
    return [line for line in (folder / "progress.jsonl").read_text().splitlines() if line]


def notes(staged: StagedLayers, what: str) -> dict[str, Any]:
    """One kind of note of all layers."""
    return {name: value for entry in staged.notes for name, value in entry["note"][what].items()}


RESUMED: dict[str, tuple[str, Recipe]] = {
    "gptq-llama": ("llama", GPTQ),
    "gptq-mixtral": ("mixtral", GPTQ),
    "awq-mixtral": ("mixtral", AwqRecipe(group_size=32, symmetric=True)),
}


@pytest.mark.parametrize(("model_type", "recipe"), RESUMED.values(), ids=RESUMED.keys())
def test_killed_job_continues_behind_its_last_layer_and_ends_the_same(
    tmp_path: Path, model_type: str, recipe: Recipe
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, num_hidden_layers=3)
    TinyJob(base=base, folder=tmp_path / "whole", recipe=recipe).run()
    process = child(run_and_die_behind_the_first_layer, base, tmp_path / "cut", recipe)
    process.join(DEADLINE_S)
    assert process.exitcode == -signal.SIGKILL
    assert len(hashes(tmp_path / "cut")) == 1
    seen: list[JobProgress] = []

    TinyJob(base=base, folder=tmp_path / "cut", recipe=recipe).run(seen.append)

    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert {progress.done for progress in seen} == {1, 2}
    assert {progress.total for progress in seen} == {3}


def test_corrupt_layer_is_made_again_and_so_is_everything_behind_it(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", num_hidden_layers=3)
    job = TinyJob(base=base, folder=tmp_path / "layers")
    job.run()
    before = hashes(tmp_path / "layers")
    file = tmp_path / "layers" / "layer_0001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen: list[JobProgress] = []

    job.run(seen.append)

    assert hashes(tmp_path / "layers") == before
    assert {progress.done for progress in seen} == {1, 2}


def test_layers_of_another_plan_are_not_used(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    TinyJob(base=base, folder=tmp_path / "layers").run()

    assert StagedLayers(tmp_path / "layers", {"seed": 0}).num_finished == 2
    assert StagedLayers(tmp_path / "layers", {"seed": 1}).num_finished == 0
    assert not list((tmp_path / "layers").glob("*.safetensors"))


def test_activations_on_disk_change_nothing(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")

    TinyJob(base=base, folder=tmp_path / "memory").run()
    TinyJob(base=base, folder=tmp_path / "disk", limit_bytes=1).run()

    assert hashes(tmp_path / "memory") == hashes(tmp_path / "disk")
    assert len(list((tmp_path / "disk.activations").iterdir())) == len(IDS)
    assert not (tmp_path / "memory.activations").exists()


def test_whole_job_with_activations_on_disk_makes_the_same_bytes_and_leaves_none(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    spec = whole_job(tmp_path, base, GPTQ)
    compress(spec)
    expected = weights_of(spec)
    scratch = Path(spec.output_dir + ".activations")
    on_disk: set[int] = set()

    def report(progress: JobProgress) -> None:
        if progress.phase == "compressing":
            on_disk.add(len(list(scratch.iterdir())))

    compress(msgspec.structs.replace(spec, activation_bytes=1), report=report)

    assert weights_of(spec) == expected
    assert on_disk == {len(IDS)}
    assert not scratch.exists()


def test_memory_for_hessians_decides_passes_and_not_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_model(tmp_path / "base", "mixtral")
    runs: list[int] = []
    original = LayerWalk.run

    def counted(walk: LayerWalk, index: int, hidden: Tensor) -> Tensor:
        runs.append(index)
        return original(walk, index, hidden)

    monkeypatch.setattr(LayerWalk, "run", counted)
    TinyJob(base=base, folder=tmp_path / "wide").run()
    num_wide = len(runs)
    monkeypatch.setattr(one_layer, "_HESSIAN_BYTES", 4 * 64**2)
    TinyJob(base=base, folder=tmp_path / "narrow").run()

    # Per layer: one sample for the groups, then passes for q k v, o, all experts' gate and up, all experts' down.
    # The samples of the last layer are not run through it once more.
    assert num_wide == 2 * (1 + 4 * len(IDS)) + len(IDS)
    assert len(runs) - num_wide > num_wide
    assert hashes(tmp_path / "wide") == hashes(tmp_path / "narrow")


def test_sequential_linears_see_the_compressed_ones_before_them(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    layers = [
        TinyJob(
            base=base, folder=tmp_path / str(flag), recipe=GptqRecipe(num_bits=2, group_size=32, true_sequential=flag)
        )
        .run()
        .tensors(0)
        for flag in (True, False)
    ]

    same = {name for name in layers[0] if torch.equal(layers[0][name], layers[1][name])}

    codes = {name.split(".")[-2] for name in same if name.endswith("qweight")}
    assert codes == {"q_proj", "k_proj", "v_proj"}


def test_expert_that_few_tokens_reach_is_rounded_to_nearest_and_named(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mixtral", num_local_experts=16, num_experts_per_tok=1)
    ids = IDS[:, :16]

    staged = TinyJob(base=base, folder=tmp_path / "layers", ids=ids).run()

    tokens, fallbacks, errors = (notes(staged, what) for what in ("tokens", "fallbacks", "errors"))
    # A tenth of 48 tokens.
    assert fallbacks.keys() == {module for module, count in tokens.items() if count < 4}
    assert 0 in {tokens[module] for module in fallbacks}
    assert all(f"{tokens[module]} tokens" in reason for module, reason in fallbacks.items())
    assert all("experts" in module for module in fallbacks)
    assert all(errors[module][0] == errors[module][1] for module in fallbacks)
    assert sum(tokens[f"model.layers.0.mlp.experts.{number}.up_proj"] for number in range(16)) == ids.numel()
    assert {tokens[f"model.layers.0.self_attn.{name}_proj"] for name in "qkvo"} == {ids.numel()}


OVERRIDDEN: dict[str, tuple[Recipe, Recipe]] = {
    "gptq-rtn": (GPTQ, RtnRecipe(num_bits=8, group_size=-1)),
    "awq-rtn": (AwqRecipe(group_size=32), RtnRecipe(num_bits=8, group_size=-1)),
    "awq-gptq": (AwqRecipe(group_size=32), GptqRecipe(num_bits=4, group_size=32, symmetric=False)),
    "awq-awq": (AwqRecipe(group_size=32), AwqRecipe(num_bits=8, group_size=32)),
}


@pytest.mark.parametrize(("main", "other"), OVERRIDDEN.values(), ids=OVERRIDDEN.keys())
def test_recipes_of_one_group_may_differ(tmp_path: Path, main: Recipe, other: Recipe) -> None:
    base = save_tiny_model(tmp_path / "base")

    staged = TinyJob(
        base=base,
        folder=tmp_path / "layers",
        recipe=main,
        layout="pack-quantized",
        overrides=(Override(pattern="*.k_proj", recipe=other), Override(pattern="*.down_proj", recipe=other)),
    ).run()

    errors = notes(staged, "errors")
    assert len(errors) == 14
    # Scales are the best for a group together, so one linear may lose a little.
    assert sum(after for _, after in errors.values()) < sum(before for before, _ in errors.values())
    assert notes(staged, "tokens")["model.layers.0.self_attn.k_proj"] == IDS.numel()
    if isinstance(other, RtnRecipe):
        # Of its outputs, where its neighbours are observed.
        assert 0 < errors["model.layers.0.self_attn.k_proj"][1] < 0.02
        assert "model.layers.0.mlp.down_proj" not in notes(staged, "tokens")


# Symmetric: what is served with zero points is not to the last bit what is stored (formats/int4.py).
AWQ = AwqRecipe(group_size=32, symmetric=True)
STORED: dict[str, tuple[str, Recipe, str]] = {
    "gptq-llama-bf16": ("llama", GPTQ, "gptq"),
    "awq-opt-bf16": ("opt", AWQ, "pack-quantized"),
    "awq-gemma2-bf16": ("gemma2", AWQ, "pack-quantized"),
    "smoothquant-qwen2-bf16": ("qwen2", SmoothQuantRecipe(), "int-quantized"),
    "awq-mixtral-bf16": ("mixtral", AWQ, "pack-quantized"),
}
SIZES: dict[str, dict[str, Any]] = {
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
}


@pytest.mark.parametrize(("model_type", "recipe", "layout"), STORED.values(), ids=STORED.keys())
def test_next_layer_sees_what_the_variant_will_compute(
    tmp_path: Path, model_type: str, recipe: Recipe, layout: str
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, dtype=torch.bfloat16, **SIZES.get(model_type, {}))
    spec = whole_job(tmp_path, base, recipe, layout)
    seen: list[Tensor] = []
    original = LayerWalk.run

    def noting(walk: LayerWalk, index: int, hidden: Tensor) -> Tensor:
        if index == 1:
            seen.append(hidden)
        return original(walk, index, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerWalk, "run", noting)
        compress(spec)
    loaded = load_model(Path(spec.output_dir), dtype="fp32", device=torch.device("cpu"), on_progress=lambda *_: None)

    walk = next(name for name, module in loaded.model.named_modules() if name.endswith("layers.1"))
    inputs: list[Tensor] = []
    loaded.model.get_submodule(walk).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    # What the layers were given: exact products, activations as they are.
    model = with_exact_products(loaded.model)
    with torch.inference_mode():
        model(IDS[:1], use_cache=False)
    # The same fp32 numbers; experts may be summed in another order.
    torch.testing.assert_close(inputs[0], seen[0], rtol=1e-4, atol=1e-5)


def whole_job(tmp_path: Path, base: Path, recipe: Recipe, layout: str | None = None) -> CompressSpec:
    save_file({"token_ids": IDS.to(torch.int32)}, tmp_path / "ids.safetensors")
    return CompressSpec(
        base_path=str(base),
        output_dir=str(tmp_path / "job" / "out"),
        base="tiny",
        variant="tiny/x",
        method="gptq",
        recipe=recipe,
        layout=layout,
        calibration=Calibration(token_ids_path=str(tmp_path / "ids.safetensors")),
        device="cpu",
    )


def weights_of(spec: CompressSpec) -> bytes:
    return (Path(spec.output_dir) / "model.safetensors").read_bytes()


def test_job_killed_at_random_instants_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    spec = whole_job(tmp_path, save_tiny_model(tmp_path / "base", num_hidden_layers=3), GPTQ)
    compress(spec)
    expected = weights_of(spec)
    output = Path(spec.output_dir)
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    shutil.rmtree(output.parent)
    child(compress_and_time, spec, tmp_path / "seconds").join(DEADLINE_S)
    duration_s = float((tmp_path / "seconds").read_text())
    chance, num_layers = random.Random(7), []
    for _ in range(20):
        shutil.rmtree(output.parent)
        process = child(compress_and_die, spec, chance.uniform(0.05, 0.95) * duration_s)
        process.join(DEADLINE_S)
        lines = output.parent / "out.layers" / "progress.jsonl"
        num_layers.append(len(lines.read_text().splitlines()) if lines.is_file() else 0)

        compress(spec)

        assert weights_of(spec) == expected
        assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert len(set(num_layers)) > 1, "no kill came in the middle"


def test_cancel_within_a_layer_keeps_only_finished_layers(tmp_path: Path) -> None:
    spec = whole_job(tmp_path, save_tiny_model(tmp_path / "base"), GPTQ)
    seen: list[JobProgress] = []

    def poll() -> None:
        # Three modules into the second layer; the next poll comes with the next sample.
        if len(seen) == 10:
            raise WorkerError(WorkerErrorCode.CANCELLED, "cancelled")

    with pytest.raises(WorkerError, match="cancelled"):
        compress(spec, poll, seen.append)

    assert (len(seen), seen[-1].layer) == (10, 1)
    assert len(hashes(Path(spec.output_dir + ".layers"))) == 1
    assert [path.name for path in Path(spec.output_dir).parent.iterdir()] == ["out.layers"]
    plan = json.loads((Path(spec.output_dir + ".layers") / "plan.json").read_text())
    assert plan["recipe"]["type"] == "gptq"
