"""Every method in every layout that holds it: compressed, written, read back and served as the same weights."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.headers import read_headers
from workers.checkpoint.load import LoadedModel, load_model
from workers.checkpoint.manifest import MANIFEST, verify_files
from workers.compress import pipeline
from workers.formats.experts import split_experts
from workers.formats.swap import quantized_linears
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import CompressResult
from workers.protocol.recipe_names import LAYOUTS, default_layout, method_of, needs_calibration, variant_suffix
from workers.protocol.recipes import (
    AwqRecipe,
    Calibration,
    CastRecipe,
    Fp4Recipe,
    Fp8Recipe,
    GptqRecipe,
    Int8Recipe,
    LlmInt8Recipe,
    Nf4Recipe,
    Override,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)
from workers.protocol.specs import CompressSpec

CPU = torch.device("cpu")
IDS = torch.randint(3, 120, (6, 48), generator=torch.Generator().manual_seed(1))
# Wide enough for groups of 32 in every matrix, and for tiles that are cut off.
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "initializer_range": 0.1}
RECIPES: list[Recipe] = [
    Int8Recipe(),
    LlmInt8Recipe(),
    Nf4Recipe(),
    Fp4Recipe(double_quant=False, block_size=128),
    Fp8Recipe(),
    Fp8Recipe(dynamic_activations=False, block_size=128),
    SmoothQuantRecipe(),
    RtnRecipe(num_bits=4, group_size=0),
    RtnRecipe(num_bits=8, group_size=32, symmetric=False),
    *(
        kind(num_bits=num_bits, group_size=32, symmetric=symmetric)
        for kind in (RtnRecipe, GptqRecipe, AwqRecipe)
        for num_bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    ),
    GptqRecipe(num_bits=4, group_size=-1, act_order=False, true_sequential=False),
]
# (recipe, layout): each recipe as it is stored by default, and once in every layout of its method.
CASES = [(recipe, default_layout(recipe)) for recipe in RECIPES]
CASES += [
    (recipe, layout)
    for recipe in (
        RtnRecipe(num_bits=4, group_size=32),
        Int8Recipe(),
        GptqRecipe(num_bits=4, group_size=32),
        AwqRecipe(num_bits=4, group_size=32, symmetric=True),
    )
    for layout in LAYOUTS[method_of(recipe)]
    if (layout, method_of(recipe)) != ("int-quantized", "rtn")
]


def name_of(case: tuple[Recipe, str]) -> str:
    return f"{variant_suffix(case[0])}-{case[1]}"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A base of one architecture, made once."""
    made: dict[str, Path] = {}

    def base(model_type: str, **options: Any) -> Path:
        name = model_type + str(sorted(options))
        if name not in made:
            folder = tmp_path_factory.mktemp("base")
            made[name] = save_tiny_model(folder, model_type, dtype=torch.bfloat16, **SHAPE, **options)
        return made[name]

    return base


def compress(base: Path, output: Path, recipe: Recipe, **changes: Any) -> CompressResult:
    ids = output.with_suffix(".ids.safetensors")
    save_file({"token_ids": IDS.to(torch.int32)}, ids)
    fields: dict[str, Any] = {
        "base": "tiny",
        "variant": "tiny/x",
        "method": method_of(recipe),
        "recipe": recipe,
        "calibration": Calibration(token_ids_path=str(ids)),
    }
    spec = CompressSpec(base_path=str(base), output_dir=str(output), device="cpu", **{**fields, **changes})
    return pipeline.compress_checkpoint(spec, lambda progress: None, lambda: None)


def load(folder: Path) -> LoadedModel:
    return load_model(folder, dtype="fp32", device=CPU, on_progress=lambda done, total: None)


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    result: Tensor = model(IDS[:2]).logits
    return result


def with_weights_of(variant: LoadedModel, base: Path) -> nn.Module:
    """The base in fp32 with the variant's weights expanded in it, norms and biases too: what the variant stands for."""
    reference = load(base).model
    if any(".experts." in name for name in quantized_linears(variant.model)):
        split_experts(reference)
    compressed = quantized_linears(variant.model)
    for name, layer in compressed.items():
        reference.get_submodule(name).weight = nn.Parameter(layer.dequantize(), requires_grad=False)
    own = dict(variant.model.named_parameters())
    for name, parameter in reference.named_parameters():
        if name.rpartition(".")[0] not in compressed:
            parameter.data = own[name].data
    return reference


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_variant_computes_with_the_weights_that_it_stores(
    tmp_path: Path, bases: Callable[..., Path], case: tuple[Recipe, str]
) -> None:
    recipe, layout = case
    base = bases("llama")

    result = compress(base, tmp_path / "out", recipe, layout=layout)
    variant = load(tmp_path / "out")

    assert (result.layout, result.num_compressed) == (layout, 14)
    assert variant.format == result.format
    assert result.weight_bytes == read_headers(tmp_path / "out").weight_bytes
    verify_files(tmp_path / "out", lambda done, total: None)
    layers = quantized_linears(variant.model)
    assert len(layers) == result.num_compressed
    expected = logits(with_weights_of(variant, base))
    # products in bf16 or with activations of 8 bits (E4M3 has 3 of fraction), in 14 products of two random layers
    bound = 0.12 if variant.format == "fp8" else 0.06
    assert (logits(variant.model) - expected).square().mean().sqrt() <= bound * expected.std()


@pytest.mark.parametrize(
    ("recipe", "bound"),
    [
        (Int8Recipe(), 0.04),
        (SmoothQuantRecipe(), 0.06),
        (Fp8Recipe(), 0.12),
        (Nf4Recipe(), 0.4),
        (RtnRecipe(num_bits=4, group_size=32, symmetric=False), 0.4),
        (GptqRecipe(num_bits=4, group_size=32), 0.3),
        (AwqRecipe(num_bits=4, group_size=32), 0.3),
        (GptqRecipe(num_bits=8, group_size=32), 0.04),
    ],
    ids=lambda value: variant_suffix(value) if not isinstance(value, float) else "",
)
@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "mixtral", "deepseek_v3"])
def test_variant_is_near_its_base_whatever_the_architecture(
    tmp_path: Path, bases: Callable[..., Path], model_type: str, recipe: Recipe, bound: float
) -> None:
    base = bases(model_type, **OPTIONS.get(model_type, {}))

    result = compress(base, tmp_path / "out", recipe)

    expected = logits(load(base).model)
    difference = logits(load(tmp_path / "out").model) - expected
    assert difference.square().mean().sqrt() <= bound * expected.std()
    if needs_calibration(recipe):
        assert result.num_tokens
        assert all(0 <= count <= IDS.numel() for count in result.num_tokens.values())


# Every token has all experts: among random ones the least error would send tokens to others.
OPTIONS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_experts_per_tok": 4},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "deepseek_v3": {
        "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
        "num_experts_per_tok": 4, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def test_experts_are_compressed_one_by_one_and_routers_never(tmp_path: Path, bases: Callable[..., Path]) -> None:
    result = compress(bases("mixtral"), tmp_path / "out", GptqRecipe(num_bits=4, group_size=32))

    layers = quantized_linears(load(tmp_path / "out").model)
    assert {name for name in layers if ".experts." in name} == {
        f"model.layers.{layer}.mlp.experts.{expert}.{part}"
        for layer in (0, 1)
        for expert in range(4)
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    assert not any(name.endswith(".gate") for name in layers)
    # each token has two of four experts
    seen = [result.num_tokens[f"model.layers.0.mlp.experts.{expert}.up_proj"] for expert in range(4)]
    assert sum(seen) == 2 * IDS.numel()


def test_expert_with_too_little_text_is_named_and_rounded_to_nearest(
    tmp_path: Path, bases: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.compress import one_layer

    monkeypatch.setattr(one_layer, "_MIN_TOKENS", 10**6)
    monkeypatch.setattr(one_layer, "_MIN_SHARE", 0.75)

    result = compress(bases("mixtral"), tmp_path / "out", GptqRecipe(num_bits=4, group_size=32))

    fallbacks = {name for name in result.fallbacks if ".experts." in name}
    assert fallbacks == set(result.fallbacks)
    few = {name for name, count in result.num_tokens.items() if count < 0.75 * IDS.numel()}
    assert fallbacks == few
    assert all("tokens of the calibration text" in reason for reason in result.fallbacks.values())


@pytest.mark.parametrize(
    "recipe", [Int8Recipe(), RtnRecipe(num_bits=4, group_size=32), Nf4Recipe()], ids=variant_suffix
)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "own"])
def test_head_is_compressed_on_request(
    tmp_path: Path, bases: Callable[..., Path], recipe: Recipe, is_tied: bool
) -> None:
    base = bases("llama", tie_word_embeddings=is_tied)

    result = compress(base, tmp_path / "out", recipe, quantize_head=True)

    variant = load(tmp_path / "out")
    assert result.num_compressed == 15
    assert "lm_head" in quantized_linears(variant.model)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    plain = load(base).model.get_input_embeddings().weight
    assert torch.equal(variant.model.get_input_embeddings().weight, plain)
    expected = logits(with_weights_of(variant, base))
    assert (logits(variant.model) - expected).square().mean().sqrt() <= 0.02 * expected.std()


def test_overrides_mix_formats_in_one_checkpoint(tmp_path: Path, bases: Callable[..., Path]) -> None:
    overrides = (
        Override(pattern="*.down_proj", recipe=Int8Recipe()),
        Override(pattern="*.layers.1.*.q_proj"),
        Override(pattern="*.o_proj", recipe=Fp8Recipe()),
    )
    recipe = GptqRecipe(num_bits=4, group_size=32)

    result = compress(bases("llama"), tmp_path / "out", recipe, layout="pack-quantized", overrides=overrides)

    variant = load(tmp_path / "out")
    kinds = {name.rpartition(".")[2]: type(layer).__name__ for name, layer in quantized_linears(variant.model).items()}
    assert kinds == {
        "q_proj": "Int4Linear",
        "k_proj": "Int4Linear",
        "v_proj": "Int4Linear",
        "o_proj": "Float8Linear",
        "gate_proj": "Int4Linear",
        "up_proj": "Int4Linear",
        "down_proj": "Int8Linear",
    }
    assert variant.format == "fp8+int4+int8"
    assert result.kept["model.layers.1.self_attn.q_proj"] == "left alone by an override"


@pytest.mark.parametrize("layout", ["pack-quantized", "gptq"])
def test_layout_without_room_for_the_overrides_is_refused(
    tmp_path: Path, bases: Callable[..., Path], layout: str
) -> None:
    overrides = (Override(pattern="*", recipe=Fp8Recipe()),)

    with pytest.raises(WorkerError, match=layout) as caught:
        compress(bases("llama"), tmp_path / "out", RtnRecipe(group_size=32), layout=layout, overrides=overrides)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "bf16"])
def test_cast_is_a_plain_checkpoint_in_another_dtype(tmp_path: Path, bases: Callable[..., Path], dtype: Any) -> None:
    base = bases("llama")

    result = compress(base, tmp_path / "out", CastRecipe(dtype=dtype))

    assert (result.format, result.layout) == (dtype, "")
    assert result.num_compressed == (0 if dtype == "bf16" else len(read_headers(base).tensors))
    names = {"fp16": "F16", "fp32": "F32", "bf16": "BF16"}
    assert {header.dtype for header in read_headers(tmp_path / "out").tensors.values()} == {names[dtype]}
    variant = load(tmp_path / "out")
    # fp16 has more digits than bf16, but for numbers below 2**-14, of which few weights are
    torch.testing.assert_close(logits(variant.model), logits(load(base).model), rtol=1e-3, atol=1e-3)


def test_matrix_that_the_groups_do_not_fill_is_kept_and_named(tmp_path: Path, bases: Callable[..., Path]) -> None:
    result = compress(bases("llama"), tmp_path / "out", RtnRecipe(num_bits=4, group_size=64))

    assert result.num_compressed == 12
    assert result.kept["model.layers.0.mlp.down_proj"] == ("its 160 input columns are no multiple of the group size 64")


def test_calibrated_method_without_text_is_refused(tmp_path: Path, bases: Callable[..., Path]) -> None:
    with pytest.raises(WorkerError, match="calibration") as caught:
        compress(bases("llama"), tmp_path / "out", GptqRecipe(group_size=32), calibration=None)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("recipe", [AwqRecipe(group_size=32), SmoothQuantRecipe()], ids=variant_suffix)
def test_result_manifest_and_card_tell_what_took_the_scales(
    tmp_path: Path, bases: Callable[..., Path], recipe: Recipe
) -> None:
    base = bases("llama")

    result = compress(base, tmp_path / "out", recipe)

    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    norms = {name for name in before if "norm" in name}
    changed = {name for name in norms if not torch.equal(before[name], after[name])}
    # Which linears were divided their codes do not tell.
    assert changed == {f"{module}.weight" for module in result.folds} & norms != set()
    scaled = [reader for readers in result.folds.values() for reader in readers]
    assert set(scaled) | result.unfolded.keys() == set(quantized_linears(load(tmp_path / "out").model))
    assert len(scaled) + len(result.unfolded) == result.num_compressed
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["folds"] == result.folds
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"- \d x `model.layers.#.input_layernorm`, for .*`model.layers.#.self_attn.q_proj`", card)
    assert all(f"no scales: {reason}" in card for reason in result.unfolded.values())


def test_card_of_a_method_without_scales_speaks_of_none(tmp_path: Path, bases: Callable[..., Path]) -> None:
    result = compress(bases("llama"), tmp_path / "out", GptqRecipe(group_size=32))

    assert (result.folds, result.unfolded) == ({}, {})
    assert "scales" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "recipe", [GptqRecipe(num_bits=4, group_size=32), AwqRecipe(group_size=32)], ids=variant_suffix
)
def test_the_same_job_makes_the_same_bytes(tmp_path: Path, bases: Callable[..., Path], recipe: Recipe) -> None:
    hashes = []
    for name in ("a", "b"):
        compress(bases("llama"), tmp_path / name, recipe)
        hashes.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())

    assert hashes[0] == hashes[1]
