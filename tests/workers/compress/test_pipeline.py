"""Compressing a checkpoint: the result is the definition, complete, the same each time, or not there at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.headers import INDEX_FILE, read_headers
from workers.checkpoint.load import load_model
from workers.checkpoint.manifest import MANIFEST, verify_files
from workers.compress import pipeline
from workers.formats import grid
from workers.formats.experts import split_experts
from workers.formats.swap import quantized_linears
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipes import Override
from workers.protocol.specs import CompressSpec

CPU = torch.device("cpu")


def ignore(_: object) -> None:
    """Progress that nobody looks at."""


def compress(
    base: Path, output: Path, report: Callable[[JobProgress], None] = ignore, **changes: Any
) -> CompressResult:
    poll: Callable[[], None] = changes.pop("poll", lambda: None)
    fields: dict[str, Any] = {"base": "tiny", "variant": "tiny/int8", "method": "int8", "device": "cpu", **changes}
    spec = CompressSpec(base_path=str(base), output_dir=str(output), **fields)
    return pipeline.compress_checkpoint(spec, report, poll)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.arange(3, 60)[None]).logits[0]
    return result


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-fp32": ("llama", {}),
    "llama-bf16-tied-bias": ("llama", {"dtype": torch.bfloat16, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("qwen2", {}),
    "mixtral-shards": ("mixtral", {"max_shard_size": "50KB"}),
}


@pytest.mark.parametrize(("model_type", "options"), CASES.values(), ids=CASES.keys())
def test_variant_computes_with_the_rounded_weights_of_its_base(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, **options)

    result = compress(base, tmp_path / "out")
    loaded = load_model(tmp_path / "out", dtype="fp32", device=CPU, on_progress=lambda done, total: None)

    # The independent reference: the base in fp32 with each compressed weight rounded by the formula.
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    split_experts(reference)
    layers = quantized_linears(loaded.model)
    assert len(layers) == result.num_compressed
    for name, layer in layers.items():
        linear = reference.get_submodule(name)
        step = (linear.weight.abs().amax(dim=1, keepdim=True) / 127).to(torch.bfloat16).float()
        linear.weight.data = (linear.weight / step).round().clamp(-127, 127) * step
        assert torch.equal(layer.dequantize(), linear.weight)
    ours, expected = logits(loaded.model), logits(reference)
    # bf16 products: 2 roundings of 2**-9 in each of 2 blocks of 2 layers, independent, and half as much from inputs
    assert (ours - expected).square().mean().sqrt() <= 2 * 2**-9 * 4**0.5 * 2 * expected.std()
    assert (loaded.format, result.format, result.bits) == ("int8", "int8", 8)
    assert result.weight_bytes == read_headers(tmp_path / "out").weight_bytes
    assert result.disk_bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    verify_files(tmp_path / "out", lambda done, total: None)


def test_everything_but_decoder_linears_is_kept_byte_by_byte(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mixtral")

    result = compress(base, tmp_path / "out", skip=("*.experts.2.*", "*.down_proj"), layout="int-quantized")

    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    compressed = {name for name in after if after[name].dtype is torch.int8}
    modules = {name.rpartition(".")[0].rpartition(".")[2] for name in compressed}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w3"}
    assert after.keys() == before.keys() | {name.replace(".weight", ".weight_scale") for name in compressed}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - compressed)
    reasons = {name.rpartition(".")[2]: reason for name, reason in result.kept.items()}
    assert reasons.keys() == {"embed_tokens", "lm_head", "gate", "gate_proj", "up_proj", "down_proj"}
    assert "router" in reasons["gate"]
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    # a number stands for any where it names kept modules only, for itself where others like it are compressed
    second = [rf"re:model\.layers\.{layer}\.block_sparse_moe\.experts\.2\." for layer in (0, 1)]
    assert set(ignored) == {
        "lm_head",
        r"re:model\.layers\.\d+\.block_sparse_moe\.gate$",
        r"re:model\.layers\.\d+\.block_sparse_moe\.experts\.\d+\.w2$",
        *(f"{start}{name}$" for start in second for name in ("w1", "w3")),
    }


def test_two_runs_differ_in_their_date_only(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")

    for name in ("a", "b"):
        compress(base, tmp_path / name)

    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "b").iterdir())
    for name in set(files) - {MANIFEST}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    manifests = [json.loads((tmp_path / name / MANIFEST).read_text()) for name in ("a", "b")]
    assert all(manifest.pop("created") for manifest in manifests)
    assert manifests[0] == manifests[1]


def test_large_variant_is_split_into_shards_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_tiny_model(tmp_path / "base")
    compress(base, tmp_path / "whole")
    monkeypatch.setattr(pipeline.CheckpointWriter.__init__, "__defaults__", (20_000,))

    compress(base, tmp_path / "split")

    assert (tmp_path / "split" / INDEX_FILE).exists()
    whole, split = (
        load_model(tmp_path / name, dtype="fp32", device=CPU, on_progress=lambda done, total: None).model
        for name in ("whole", "split")
    )
    assert torch.equal(logits(whole), logits(split))


def test_tokenizer_template_and_generation_defaults_come_along_and_nothing_else(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "notes.txt").write_text("private")

    compress(base, tmp_path / "out")

    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja",
        "README.md", MANIFEST,
    }  # fmt: skip


def test_progress_names_each_module_and_its_error(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    seen: list[JobProgress] = []

    result = compress(base, tmp_path / "out", seen.append)

    rounded = [progress for progress in seen if progress.error_after is not None]
    errors = {progress.module: progress.error_after for progress in rounded}
    assert len(errors) == result.num_compressed == 14
    # uniform rounding error of max / 127 / sqrt(12), for normal weights with max near 2.5 to 4 sigma
    assert all(0.004 < error < 0.011 for error in errors.values())
    assert result.mean_error == pytest.approx(sum(errors.values()) / len(errors))
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total
    # Rounding to nearest is all that was done.
    assert all(progress.error_before is None for progress in seen)
    assert [progress.layer for progress in rounded] == [int(progress.module.split(".")[2]) for progress in rounded]
    assert {progress.num_layers for progress in seen} == {2}
    assert {progress.layer for progress in seen if "layers" not in progress.module} == {None}


def test_cancel_takes_effect_at_the_next_tensor_and_leaves_nothing(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    seen: list[JobProgress] = []

    def poll() -> None:
        if len(seen) == 3:
            raise WorkerError(WorkerErrorCode.CANCELLED, "the job was cancelled")

    with pytest.raises(WorkerError, match="cancelled"):
        compress(base, tmp_path / "out", seen.append, poll=poll)

    assert len(seen) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_skipped_modules_stay_as_they_are(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")

    result = compress(base, tmp_path / "out", skip=("*.down_proj", "model.layers.0.*"))

    assert result.num_compressed == 6
    assert result.kept["model.layers.1.mlp.down_proj"] == "skipped on request"


def test_model_without_linears_is_refused_with_the_reason(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "gpt2")

    with pytest.raises(WorkerError, match="Conv1D") as caught:
        compress(base, tmp_path / "out")

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL
    assert not (tmp_path / "out").exists()


def test_override_leaves_its_modules_uncompressed(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")

    result = compress(base, tmp_path / "out", overrides=(Override(pattern="*.down_proj"),))

    assert result.num_compressed == 12


def test_layout_without_room_for_the_codes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="layout 'awq' cannot store 'int8'"):
        compress(save_tiny_model(tmp_path / "base"), tmp_path / "out", layout="awq")


def test_compressed_base_is_refused(tmp_path: Path) -> None:
    compress(save_tiny_model(tmp_path / "base"), tmp_path / "once")

    with pytest.raises(WorkerError, match="compressed already"):
        compress(tmp_path / "once", tmp_path / "twice")


def test_nan_in_the_base_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(WorkerError, match="NaN") as caught:
        compress(base, tmp_path / "out")

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT
    assert not (tmp_path / "out").exists()


def test_foreign_fp32_scales_are_read_exactly(tmp_path: Path) -> None:
    """The same format as others write it: scales in fp32."""
    compress(save_tiny_model(tmp_path / "base"), tmp_path / "out", layout="int-quantized")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    factor = 1 + 2**-12
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = tensors[name].float() * factor
    save_file(tensors, file, metadata={"format": "pt"})

    model = load_model(tmp_path / "out", dtype="fp32", device=CPU, on_progress=lambda done, total: None).model

    for name, layer in quantized_linears(model).items():
        expected = grid.dequantize(tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"])
        assert torch.equal(layer.dequantize(), expected)
