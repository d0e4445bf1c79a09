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
    "mixtral": ("mixtral", {}),
}


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

    hidden = list(walk.embed(ids))
    for index in range(len(walk.layers)):
        with walk.layer(index):
            hidden = [walk.run(index, one) for one in hidden]

    expected = [output[0] if isinstance(output, tuple) else output for output in last]
    # The same operations on the same fp32 numbers: only the order of sums inside a kernel may differ.
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(hidden, expected, strict=True))
    assert all(parameter.device.type == "meta" for parameter in walk.model.parameters())
