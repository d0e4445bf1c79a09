"""Stored weights are found in the model where transformers loads them, experts in a model whose experts are split."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.workers.checkpoint.split_loading import SPLITTABLE, load_fused, save
from tests.workers.engine.architectures import CONFIGS
from workers.checkpoint.headers import read_headers
from workers.checkpoint.stored_names import split_stored_experts, stored_names
from workers.formats.experts import SplitExperts


@pytest.mark.parametrize("name", SPLITTABLE)
def test_every_stored_weight_is_the_weight_of_its_module(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    model, stored = load_fused(folder), load_file(folder / "model.safetensors")

    names = split_stored_experts(model, stored)

    matrices = {name for name, tensor in stored.items() if tensor.dim() == 2 and name.endswith(".weight")}
    assert names.experts
    assert names.fused == {}
    assert matrices <= names.modules.keys()
    for stored_name, module in names.modules.items():
        assert torch.equal(model.get_submodule(module).weight, stored[stored_name]), stored_name
    split = {n for n, module in model.named_modules() if isinstance(module, nn.Linear) and ".experts." in n}
    assert split == {module for own in names.experts.values() for module in own.values()}


def test_names_without_the_decoders_prefix_are_found(tmp_path: Path) -> None:
    model = load_fused(save(tmp_path, "mixtral"))

    names = stored_names(model, [f"layers.0.block_sparse_moe.experts.{e}.w{n}.weight" for e in range(4) for n in "123"])

    assert names.modules["layers.0.block_sparse_moe.experts.3.w2.weight"] == "model.layers.0.mlp.experts.3.down_proj"


def test_more_than_ten_experts_keep_their_numbers(tmp_path: Path) -> None:
    config = CONFIGS["qwen3_moe"]()
    config.num_experts = 12
    model = AutoModelForCausalLM.from_config(config)
    prefix = "model.layers.1.mlp.experts"
    stored = [f"{prefix}.{e}.{part}_proj.weight" for e in range(12) for part in ("gate", "up", "down")]

    names = stored_names(model, stored)

    assert names.experts == {prefix: {name: name.removesuffix(".weight") for name in stored}}


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (["model.layers.0.mlp.experts.2.up_proj.weight"], "has up_proj of 3 experts, the model has 4"),
        ([f"model.layers.0.mlp.experts.{e}.down_proj.weight" for e in range(4)], "has down_proj of 0 experts"),
    ],
    ids=["one-lost", "all-lost"],
)
def test_incomplete_experts_are_not_split(tmp_path: Path, lost: list[str], reason: str) -> None:
    folder = save(tmp_path, "qwen3_moe")
    model, names = load_fused(folder), read_headers(folder).tensors.keys() - set(lost)

    found = split_stored_experts(model, names)

    assert reason in found.fused["model.layers.0.mlp.experts"]
    assert found.experts.keys() == {"model.layers.1.mlp.experts"}
    assert not any(module.startswith("model.layers.0.mlp.experts") for module in found.modules.values())


@pytest.mark.parametrize(
    ("name", "reason"), [("granitemoe", "stores its experts as one tensor"), ("gpt_oss", "GptOssExperts has")]
)
def test_experts_stored_in_one_tensor_stay_fused_with_a_reason(tmp_path: Path, name: str, reason: str) -> None:
    folder = save(tmp_path, name)
    model = load_fused(folder)

    found = split_stored_experts(model, read_headers(folder).tensors)

    assert found.experts == {}
    assert len(found.fused) == 2
    assert all(reason in told for told in found.fused.values())
    assert not any(isinstance(module, SplitExperts) for module in model.modules())
