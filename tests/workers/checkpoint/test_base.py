"""Inspecting a base tells what it is from small files alone, and fast."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer

from tests.workers.tiny import save_tiny_model
from workers.checkpoint import config as configs
from workers.checkpoint.base import describe_base
from workers.checkpoint.tokenizer import has_chat_template
from workers.protocol.errors import WorkerError, WorkerErrorCode


def test_description_of_a_model(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", dtype=torch.bfloat16, tie_word_embeddings=True)

    info = describe_base(folder, tmp_path / "target")

    assert (info.architecture, info.model_type, info.dtype) == ("LlamaForCausalLM", "llama", "bf16")
    assert (info.num_layers, info.max_model_len, info.vocab_size) == (2, 128, 128)
    assert info.weight_bytes == 2 * info.num_parameters == 2 * 69_952
    assert info.quantization is None
    assert info.path == str(folder)
    assert info.files["config.json"][0] == (folder / "config.json").stat().st_size
    assert not (tmp_path / "target").exists()


def test_fingerprint_depends_on_content_and_not_on_time_or_place(tmp_path: Path) -> None:
    first = save_tiny_model(tmp_path / "a")
    second = save_tiny_model(tmp_path / "b")
    os.utime(second / "config.json", (1, 1))
    third = save_tiny_model(tmp_path / "c", rope_theta=5.0)

    prints = [describe_base(folder, tmp_path / "target").fingerprint for folder in (first, second, third)]

    assert prints[0] == prints[1] != prints[2]


def test_inspecting_imports_neither_torch_nor_transformers() -> None:
    modules = "workers.job, workers.checkpoint.base"
    code = f"import sys, {modules}; sys.exit(not sys.modules.keys().isdisjoint({{'torch', 'transformers'}}))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_slow_tokenizer_is_converted_into_the_target(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": BertTokenizer.__name__}))

    describe_base(folder, tmp_path / "target")

    assert not (folder / "tokenizer.json").exists()
    vocabulary = json.loads((tmp_path / "target" / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary["world"] == 6


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "tokenizer.json").unlink()

    with pytest.raises(WorkerError, match="has no tokenizer"):
        describe_base(folder, tmp_path / "target")


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_folder_without_config_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkerError) as caught:
        describe_base(tmp_path / name, tmp_path / "target")

    assert caught.value.code is WorkerErrorCode.BASE_NOT_FOUND


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 32}}, 32),
        ({"max_position_embeddings": None, "seq_length": 7}, 7),
        ({"max_position_embeddings": True}, 2**17),
        ({}, 2**17),
    ],
    ids=["llama", "gpt2", "nested", "none", "bool", "recurrent"],
)
def test_max_model_len_of_a_config(config: dict[str, object], expected: int) -> None:
    assert configs.max_model_len(config) == expected


def test_chat_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert has_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(tmp_path)
