"""A model whose experts are split is filled from its files, whole or layer by layer, and answers as the fused one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from tests.workers.checkpoint.split_loading import (
    CLOSE,
    CPU,
    SPLITTABLE,
    assert_same_answers,
    load_fused,
    load_split,
    save,
)
from tests.workers.engine.architectures import VOCAB_SIZE
from workers.checkpoint.headers import read_headers
from workers.checkpoint.load import build_skeleton
from workers.checkpoint.stored_names import split_stored_experts
from workers.checkpoint.tensors import read_tensor
from workers.formats.experts import SplitExperts, fill_experts


@pytest.mark.parametrize("name", SPLITTABLE)
def test_model_loaded_split_answers_as_the_fused_one(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    headers = read_headers(folder)

    model, found = load_split(folder, headers, headers.tensors.keys())

    assert found.experts
    assert all(parameter.device == CPU for parameter in model.parameters())
    assert_same_answers(model, load_fused(folder))


def test_only_experts_with_a_compressed_weight_are_loaded_split(tmp_path: Path) -> None:
    folder = save(tmp_path, "mixtral")

    model, found = load_split(
        folder, read_headers(folder), {"model.layers.1.block_sparse_moe.experts.2.w1.weight", "lm_head.weight"}
    )

    assert found.experts.keys() == {"model.layers.1.mlp.experts"}
    assert not isinstance(model.get_submodule("model.layers.0.mlp.experts"), SplitExperts)
    assert "model.layers.0.block_sparse_moe.experts.2.w1.weight" not in found.modules
    assert_same_answers(model, load_fused(folder))


@pytest.mark.parametrize("name", SPLITTABLE)
def test_one_layer_is_filled_from_its_files_and_given_back(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, name)
    headers, reference = read_headers(folder), load_fused(folder)
    calls: list[tuple[Any, Any, Any]] = []
    skeleton: Any = build_skeleton(folder).eval().float()
    experts = {s: m for own in split_stored_experts(skeleton, headers.tensors).experts.values() for s, m in own.items()}
    index, prefix = next((int(p.split(".")[2]), ".".join(p.split(".")[:3])) for p in experts.values())
    reference.get_submodule(prefix).register_forward_hook(
        lambda _, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    with torch.inference_mode():
        reference(torch.randint(3, VOCAB_SIZE, (1, 17)), use_cache=False)
    linear = skeleton.get_submodule(next(iter(experts.values())))
    own = [stored for stored in headers.tensors if f".layers.{index}." in f".{stored}"]

    layer = skeleton.get_submodule(prefix)
    read = {stored: module for stored, module in experts.items() if stored in own}
    fill_experts(skeleton, read, lambda n: read_tensor(headers.tensors[n]), device=CPU, dtype=torch.float32)
    convert_and_load_state_dict_in_model(
        skeleton,
        {stored: read_tensor(headers.tensors[stored]) for stored in own if stored not in experts},
        LoadStateDictConfig(
            weight_mapping=get_model_conversion_mapping(skeleton), dtype=torch.float32, device_map={"": "cpu"}
        ),
    )

    args, kwargs, expected = calls[0]
    with torch.inference_mode():
        torch.testing.assert_close(layer(*args, **kwargs), expected, **CLOSE)
    assert skeleton.get_submodule(next(iter(experts.values()))) is linear
    assert not linear.weight.is_meta
    layer.to("meta")
    assert all(parameter.is_meta for parameter in skeleton.parameters())
