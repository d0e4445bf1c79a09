"""A loaded model is what transformers would have loaded, bit by bit, and complete."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.load import LoadedModel, build_skeleton, load_model
from workers.protocol.errors import WorkerError, WorkerErrorCode

CPU = torch.device("cpu")


def load(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="fp32", device=CPU, on_progress=lambda done, total: None)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"max_shard_size": "50KB"}),
        ("gpt2", {}),
        ("mixtral", {}),
    ],
    ids=["llama-tied", "llama-shards", "gpt2", "mixtral"],
)
def test_every_tensor_and_buffer_is_bit_identical_to_a_plain_load(
    tmp_path: Path, model_type: str, options: dict[str, object]
) -> None:
    folder = save_tiny_model(tmp_path / "model", model_type, **options)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    loaded = load(folder)

    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(loaded.model, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_tied_weights_are_one_tensor_and_counted_once(tmp_path: Path) -> None:
    loaded = load(save_tiny_model(tmp_path / "model", tie_word_embeddings=True))

    embedding, head = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
    buffer_bytes = sum(buffer.nbytes for buffer in loaded.model.buffers())
    assert embedding is head
    assert loaded.num_parameters == 69_952
    assert loaded.weight_bytes == 4 * 69_952 + buffer_bytes
    assert loaded.format == "fp32"


def test_weights_do_not_live_in_the_file(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    loaded = load(folder)
    before = loaded.model.get_input_embeddings().weight.clone()
    size = (folder / "model.safetensors").stat().st_size

    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(bytes(size))

    assert torch.equal(loaded.model.get_input_embeddings().weight, before)


def test_progress_grows_to_the_bytes_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "mixtral")
    seen: list[tuple[int, int]] = []

    load_model(folder, dtype="auto", device=CPU, on_progress=lambda done, total: seen.append((done, total)))

    total = (folder / "model.safetensors").stat().st_size
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert total * 0.9 < seen[-1][1] <= total
    assert len(seen) > 20


def test_error_in_progress_stops_the_load(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")

    def stop(done: int, total: int) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        load_model(folder, dtype="auto", device=CPU, on_progress=stop)


def test_missing_tensor_is_never_made_up(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(WorkerError, match="lacks 1 tensors") as caught:
        load(folder)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_tensor_of_another_shape_is_corrupt(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(WorkerError, match="shape") as caught:
        load(folder)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["FancyForCausalLM"], "model_type": "fancy"},
        {"architectures": ["FancyForCausalLM"], "model_type": "vit"},
    ],
    ids=["unknown-family", "no-language-model"],
)
def test_unknown_architecture_is_named(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = save_tiny_model(tmp_path / "model")
    change_config(folder, **changes)

    with pytest.raises(WorkerError, match="FancyForCausalLM") as caught:
        load(folder)

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


def test_foreign_compression_names_what_is_supported(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    change_config(folder, quantization_config={"quant_method": "mxfp4"})

    with pytest.raises(WorkerError, match="mxfp4") as caught:
        load(folder)

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


@pytest.mark.parametrize("file", ["config.json", "quantize_config.json"])
def test_compression_that_the_files_do_not_have_is_corrupt(tmp_path: Path, file: str) -> None:
    folder = save_tiny_model(tmp_path / "model")
    stated = {"bits": 4, "group_size": 128}
    if file == "config.json":
        change_config(folder, quantization_config={"quant_method": "gptq", **stated})
    else:
        (folder / file).write_text(json.dumps(stated))

    with pytest.raises(WorkerError, match="no tensor") as caught:
        load(folder)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_skeleton_has_every_module_and_no_memory(tmp_path: Path) -> None:
    skeleton = build_skeleton(save_tiny_model(tmp_path / "model"))

    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert len(skeleton.model.layers) == 2
