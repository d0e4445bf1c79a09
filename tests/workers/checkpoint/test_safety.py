"""A model folder is refused if opening it could run code or reach out of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from workers.checkpoint.safety import check_config, check_folder
from workers.protocol.errors import WorkerError, WorkerErrorCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes: a config, weights (never opened by the check) and a tokenizer."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(b"")
    (path / "tokenizer.json").write_text("{}")
    return path


def refusal(folder: Path) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        check_folder(folder)
    return caught.value


def test_plain_folder_passes(folder: Path) -> None:
    check_folder(folder)


def test_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")

    check_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "weights.pkl", "M.BIN"])
def test_weights_that_are_pickles_only_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"x")

    error = refusal(folder)

    assert error.code is WorkerErrorCode.UNSAFE_CHECKPOINT
    assert "safetensors only" in error.message


@pytest.mark.parametrize("name", ["modeling_x.py", "sub/deep/x.PY", "kernel.so"])
def test_code_in_the_folder_is_refused_at_any_depth(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("raise SystemExit")

    assert refusal(folder).code is WorkerErrorCode.UNSAFE_CHECKPOINT


BAD_CONFIGS: dict[str, dict[str, Any]] = {
    "auto-map": {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}},
    "auto-map-in-a-list-in-a-dict": {"vision": [{"x": {"auto_map": {"AutoConfig": "someone/repo--x.X"}}}]},
    "trust-remote-code": {"text_config": {"trust_remote_code": True}},
    "attention-internal": {"_attn_implementation_internal": "someone/kernel"},
    "any-internal": {"a": {"_something_internal": "x"}},
    "attention-from-the-hub": {"attn_implementation": "kernels-community/flash-attn"},
    "redirected-weights": {"transformers_weights": "other.safetensors"},
    "fusion": {"fusion_config": {"patch_embeddings": True}},
    "unknown-quant-method": {"quantization_config": {"quant_method": "pickle-me"}},
    "no-quant-method": {"quantization_config": {"bits": 4}},
    "quant-method-in-text-config": {"text_config": {"quantization_config": {"quant_method": "x"}}},
}


@pytest.mark.parametrize("config", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_config_that_loads_code_is_refused(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))

    assert refusal(folder).code is WorkerErrorCode.UNSAFE_CHECKPOINT


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": None, "trust_remote_code": False},
        {"_attn_implementation": "flash_attention_2"},
    ],
    ids=["known-quant-method", "nothing-set", "attention-by-name"],
)
def test_harmless_config_passes(config: dict[str, Any]) -> None:
    check_config("config.json", config)


@pytest.mark.parametrize(
    "text", ["[1]", "{", "[" * 100_000, '{"a": ' * 5000], ids=["list", "cut", "deep", "deep-object"]
)
def test_config_that_is_no_object_is_corrupt(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)

    assert refusal(folder).code is WorkerErrorCode.VARIANT_CORRUPT


def test_tokenizer_config_is_scanned_too(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.X", null]}}')

    assert refusal(folder).code is WorkerErrorCode.UNSAFE_CHECKPOINT


def test_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")

    assert "link out of the folder" in refusal(folder).message


def test_link_to_a_folder_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "sub").symlink_to(tmp_path / "elsewhere")

    assert "link out of the folder" in refusal(folder).message


def test_snapshot_of_the_hub_cache_may_link_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--someone--small"
    snapshot = model / "snapshots" / "0123abc"
    (model / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(model / "blobs" / file.name)
        (snapshot / file.name).symlink_to(model / "blobs" / file.name)

    check_folder(snapshot)
    (snapshot / "other.json").symlink_to(tmp_path)

    assert refusal(snapshot).code is WorkerErrorCode.UNSAFE_CHECKPOINT


def test_adapter_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")

    assert "merge_and_unload" in refusal(folder).message
