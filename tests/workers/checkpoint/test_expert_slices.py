"""Experts that a file holds in one tensor are seen, read and loaded one by one."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.workers.checkpoint.split_loading import assert_same_answers, load_fused, load_split, save
from workers.checkpoint.expert_slices import slice_experts
from workers.checkpoint.headers import read_headers
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.stored_names import split_stored_experts, stored_names
from workers.checkpoint.tensors import read_tensor
from workers.formats.experts import split_experts


def save_fused(folder: Path) -> None:
    """Rewrite a folder's weights with the experts of a layer in one tensor, as newer checkpoints have them."""
    fused = load_fused(folder).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in fused.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("name", ["qwen3_moe", "nemotron_h", "granitemoe"])
def test_slices_are_the_experts_of_a_fused_tensor(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    save_fused(folder)
    whole = read_headers(folder)
    reference = load_fused(folder)

    headers = slice_experts(build_skeleton(folder), whole)

    split = load_fused(folder)
    split_experts(split)
    names = stored_names(build_skeleton(folder), headers.tensors)
    assert names.fused == {}
    assert headers.weight_bytes == whole.weight_bytes
    for own in names.experts.values():
        for stored, module in own.items():
            assert torch.equal(read_tensor(headers.tensors[stored]), split.get_submodule(module).weight)
    model, _ = load_split(folder, headers, headers.tensors.keys())
    assert_same_answers(model, reference)


def test_checkpoint_without_fused_tensors_is_left_as_it_is(tmp_path: Path) -> None:
    folder = save(tmp_path, "mixtral")
    headers = read_headers(folder)

    assert slice_experts(build_skeleton(folder), headers) == headers


def test_names_of_slices_need_no_rule_and_are_always_split(tmp_path: Path) -> None:
    folder = save(tmp_path, "granitemoe")
    skeleton = build_skeleton(folder)
    headers = slice_experts(skeleton, read_headers(folder))

    found = split_stored_experts(skeleton, headers.tensors, compressed=())

    assert found.experts.keys() == {f"model.layers.{index}.block_sparse_moe.experts" for index in range(2)}


def test_slices_keep_the_stored_names_own_beginning(tmp_path: Path) -> None:
    config = transformers.Qwen3_5MoeTextConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        layer_types=["full_attention"], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    path = "model.language_model.layers.0.mlp.experts"
    stored = {f"{path}.gate_up_proj": torch.zeros(4, 48, 32), f"{path}.down_proj": torch.zeros(4, 32, 24)}
    save_file(stored, tmp_path / "model.safetensors")

    headers = slice_experts(model, read_headers(tmp_path))

    assert len(headers.tensors) == 12
    assert stored_names(model, headers.tensors).modules[f"{path}.3.up_proj.weight"] == (
        "model.layers.0.mlp.experts.3.up_proj"
    )


def test_module_is_cut_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen3_moe")
    save_fused(folder)
    tensors = load_fused(folder).state_dict()
    down = "model.layers.1.mlp.experts.down_proj"
    turned = {name: tensor.mT if name == down else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in turned.items()}, folder / "model.safetensors")
    whole = read_headers(folder)

    headers = slice_experts(build_skeleton(folder), whole)

    assert {name for name in whole.tensors if name in headers.tensors and ".experts." in name} == {
        down,
        "model.layers.1.mlp.experts.gate_up_proj",
    }
