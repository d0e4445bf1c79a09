"""Walking a model layer by layer computes what the whole model computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.headers import read_headers
from workers.compress.walk import LayerWalk
from workers.protocol.errors import WorkerError, WorkerErrorCode

_MULTIPLIERS = [1.0, 2.0, 0.5, 3.0, 1.5]
HYBRID = {"num_key_value_heads": 2, "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-bf16": ("llama", {"dtype": torch.bfloat16}),
    "gemma2-sliding": ("gemma2", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "gemma3-hybrid": (
        "gemma3_text",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3-tied": ("qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen2-bias": ("qwen2", {}),
    "gpt-neox": ("gpt_neox", {}),
    "opt": ("opt", {"word_embed_proj_dim": 64, "ffn_dim": 96}),
    "mixtral": ("mixtral", {}),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    # Its layers return their attention weights too.
    "bamba": ("bamba", {**HYBRID, "mamba_d_head": 32, "attn_layer_indices": [1]}),
    # Its decoder computes a buffer for all layers.
    "falcon-h1": (
        "falcon_h1",
        {**HYBRID, "mamba_d_head": 16, "mamba_d_ssm": 64, "ssm_multipliers": _MULTIPLIERS},
    ),
}


def walk_all(base: Path, ids: Tensor) -> list[Tensor]:
    return walk_through(LayerWalk(base, read_headers(base), torch.device("cpu")), ids)


def walk_through(walk: LayerWalk, ids: Tensor) -> list[Tensor]:
    """The last layer's hidden states of each sample."""
    hidden = list(walk.embed(ids))
    for index in range(len(walk.layers)):
        with walk.layer(index):
            hidden = [walk.run(index, one) for one in hidden]
    return hidden


@pytest.mark.parametrize(("model_type", "options"), CASES.values(), ids=CASES.keys())
def test_walk_without_compression_gives_the_models_hidden_states(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, **options)
    ids = torch.randint(3, 120, (2, 40), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    last: list[Tensor] = []
    walk = LayerWalk(base, read_headers(base), torch.device("cpu"))
    reference: nn.Module = model.get_submodule(f"{walk.path}.{len(walk.layers) - 1}")
    reference.register_forward_hook(lambda module, args, output: last.append(output))
    with torch.inference_mode():
        for sample in ids:
            model(sample[None])

    hidden = walk_through(walk, ids)

    expected = [output[0] if isinstance(output, tuple) else output for output in last]
    # The same operations on the same fp32 numbers: only the order of sums inside a kernel may differ.
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(hidden, expected, strict=True))
    assert all(parameter.device.type == "meta" for parameter in walk.model.parameters())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    # Its decoder hands a state from layer to layer.
    "rwkv": ("rwkv", {}, "hidden states alone"),
    # Some layers attend to the tokens that the one before has chosen.
    "glm-moe-dsa": ("glm_moe_dsa", {}, "more than hidden states"),
}


@pytest.mark.parametrize(("model_type", "options", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_model_that_cannot_be_walked_is_refused_with_a_way_out(
    tmp_path: Path, model_type: str, options: dict[str, Any], reason: str
) -> None:
    base = save_tiny_model(tmp_path / "base", model_type, **options)
    ids = torch.randint(3, 120, (2, 8))

    with pytest.raises(WorkerError, match=f"layer by layer.*{reason}.*use rtn") as caught:
        walk_all(base, ids)

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


def test_buffer_that_no_initializer_fills_is_refused(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    walk = LayerWalk(base, read_headers(base), torch.device("cpu"))
    walk.layers[1].register_buffer("computed", torch.empty(3, device="meta"), persistent=False)

    with pytest.raises(WorkerError, match=r"no file holds its buffer 'computed' of LlamaDecoderLayer; use rtn"):
        walk_through(walk, torch.randint(3, 120, (2, 8)))


def test_stored_names_are_those_of_the_files(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "mixtral", dtype=torch.bfloat16)
    walk = LayerWalk(base, read_headers(base), torch.device("cpu"))

    router = walk.stored_as("model.layers.1.mlp.gate.weight")
    expert = walk.stored_as("model.layers.1.mlp.experts.3.gate_proj.weight")

    assert router == ("model.layers.1.block_sparse_moe.gate.weight", torch.bfloat16)
    assert expert == ("model.layers.1.block_sparse_moe.experts.3.w1.weight", torch.bfloat16)
    assert walk.stored_as("model.layers.1.self_attn.q_proj.bias") is None
    assert len(walk.stored_names(1)) == 4 + 2 + 1 + 4 * 3
