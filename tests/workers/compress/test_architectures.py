"""Models of many shapes, recurrent and hybrid ones too, are compressed, load, and compute with the rounded weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.workers.compress.layer_jobs import IDS, compress, with_exact_products
from tests.workers.tiny import save_tiny_model
from workers.checkpoint.load import load_model
from workers.formats.experts import split_experts
from workers.formats.swap import quantized_linears
from workers.measure.quality import kl_divergence, log_probs, window_logits
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult, JobProgress
from workers.protocol.recipes import (
    AwqRecipe,
    Calibration,
    GptqRecipe,
    Int8Recipe,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)
from workers.protocol.specs import CompressSpec

CPU = torch.device("cpu")
TEXT = torch.arange(3, 99)
# Wide weights, so that the models do not say much the same whatever is done to them.
_WIDE = {"initializer_range": 0.2}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8, "num_key_value_heads": 2}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 8},
    "bamba": {**_MAMBA2, "mamba_d_head": 32, "attn_layer_indices": [1]},
    "falcon_h1": {**_MAMBA2, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_MAMBA2,
        "mamba_d_head": 32,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    # It halves some weights of the second block in place.
    "rwkv": {"attention_hidden_size": 64, "rescale_every": 1},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4},
    "bloom": {"n_head": 4, "n_layer": 2},
    "falcon": {},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2},
}
DATA_FREE: dict[str, Recipe] = {"int8": Int8Recipe(), "rtn-int4-g32": RtnRecipe(num_bits=4, group_size=32)}
CALIBRATED: dict[str, Recipe] = {
    "gptq": GptqRecipe(group_size=32),
    "awq": AwqRecipe(group_size=32),
    "smoothquant": SmoothQuantRecipe(),
}
WALKED = ["mamba", "mamba2", "bamba", "falcon_h1", "granitemoehybrid", "recurrent_gemma", "gpt_bigcode"]


def compress_tiny(
    tmp_path: Path, model_type: str, recipe: Recipe, seen: list[JobProgress] | None = None
) -> CompressResult:
    """Base and variant are tmp_path / "base" and tmp_path / "out"."""
    save_tiny_model(tmp_path / "base", model_type, **_WIDE, **ARCHITECTURES[model_type])
    save_file({"token_ids": IDS.to(torch.int32)}, tmp_path / "ids.safetensors")
    spec = CompressSpec(
        base_path=str(tmp_path / "base"),
        output_dir=str(tmp_path / "out"),
        base="tiny",
        variant="tiny/x",
        method="x",
        recipe=recipe,
        calibration=Calibration(token_ids_path=str(tmp_path / "ids.safetensors")),
        device="cpu",
    )
    return compress(spec, report=([] if seen is None else seen).append)


def load_variant(tmp_path: Path) -> PreTrainedModel:
    return load_model(tmp_path / "out", dtype="fp32", device=CPU, on_progress=lambda done, total: None).model


def load_base(tmp_path: Path) -> PreTrainedModel:
    """By transformers alone."""
    return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()


def divergence(base: PreTrainedModel, variant: PreTrainedModel) -> float:
    """KL(base || variant), mean nats per token."""
    p, q = (log_probs(window_logits(model, [TEXT])) for model in (base, variant))
    return float(kl_divergence(p, q).mean())


@pytest.mark.parametrize("recipe", DATA_FREE.values(), ids=DATA_FREE.keys())
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_variant_of_any_architecture_loads_and_computes_with_its_rounded_weights(
    tmp_path: Path, model_type: str, recipe: Recipe
) -> None:
    result = compress_tiny(tmp_path, model_type, recipe)

    variant = load_variant(tmp_path)
    assert divergence(load_base(tmp_path), variant) < (0.01 if isinstance(recipe, Int8Recipe) else 0.5)
    reference = load_base(tmp_path)
    split_experts(reference)
    layers = quantized_linears(variant)
    assert len(layers) == result.num_compressed > 0
    for name, layer in layers.items():
        reference.get_submodule(name).weight.data = layer.dequantize()
    ours, expected = (log_probs(window_logits(model, [TEXT])) for model in (with_exact_products(variant), reference))
    # The same fp32 numbers; experts may be summed in another order.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", CALIBRATED.values(), ids=CALIBRATED.keys())
@pytest.mark.parametrize("model_type", WALKED)
def test_recurrent_and_hybrid_models_are_calibrated_layer_by_layer(
    tmp_path: Path, model_type: str, recipe: Recipe
) -> None:
    seen: list[JobProgress] = []

    result = compress_tiny(tmp_path, model_type, recipe, seen)

    before, after = zip(*((one.error_before, one.error_after) for one in seen if one.error_after), strict=True)
    assert len(after) == result.num_compressed
    assert sum(after) <= sum(before)
    assert divergence(load_base(tmp_path), load_variant(tmp_path)) < 0.5


@pytest.mark.parametrize("recipe", CALIBRATED.values(), ids=CALIBRATED.keys())
def test_model_that_hands_on_a_state_is_refused_before_any_work(tmp_path: Path, recipe: Recipe) -> None:
    seen: list[JobProgress] = []

    with pytest.raises(WorkerError, match=r"layer by layer.*use rtn") as caught:
        compress_tiny(tmp_path, "rwkv", recipe, seen)

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL
    assert not seen
    assert not (tmp_path / "out").exists()
