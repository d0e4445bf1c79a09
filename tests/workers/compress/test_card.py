"""Whom the model card names as readers: only who was seen to read such files (docs/formats.md)."""

import pytest

from workers.compress.calibrated import LayerResults
from workers.compress.card import model_card
from workers.compress.plan import CompressionPlan
from workers.protocol.recipes import AwqRecipe, Fp8Recipe, GptqRecipe, Int8Recipe, Recipe, SmoothQuantRecipe
from workers.protocol.specs import CompressSpec


@pytest.mark.parametrize(
    ("layout", "recipe", "transformers_needs", "is_vllm_named"),
    [
        ("gptq", GptqRecipe(), "gptqmodel", True),
        ("gptq_v2", GptqRecipe(symmetric=False), "gptqmodel", False),
        ("pack-quantized", AwqRecipe(), None, True),
        ("pack-quantized", AwqRecipe(symmetric=True), "compressed-tensors", True),
        ("int-quantized", Int8Recipe(), "compressed-tensors", False),
        ("int-quantized", SmoothQuantRecipe(), "compressed-tensors", True),
        ("float-quantized", Fp8Recipe(), "compressed-tensors", True),
    ],
)
def test_card_names_who_reads_the_layout(
    layout: str, recipe: Recipe, transformers_needs: str | None, is_vllm_named: bool
) -> None:
    card = _card(layout, recipe)

    (line,) = [line for line in card.splitlines() if line.startswith("Load it with")]
    assert ("vLLM" in line) is is_vllm_named
    assert ("transformers" in line) is (transformers_needs is not None)
    assert transformers_needs is None or f"`{transformers_needs}`" in line


def test_card_of_a_compressed_head_names_no_reader_that_refuses_it() -> None:
    assert "vLLM" not in _card("pack-quantized", Int8Recipe(), quantize_head=True)


def _card(layout: str, recipe: Recipe, *, quantize_head: bool = False) -> str:
    spec = CompressSpec(
        base_path="/base",
        output_dir="/out",
        base="tiny",
        variant="tiny/v",
        method="m",
        recipe=recipe,
        quantize_head=quantize_head,
    )
    plan = CompressionPlan(
        targets={}, recipes={}, schemes={}, kept={}, ignore=[], head="lm_head", layers="model.layers", num_layers=0
    )
    return model_card(spec, plan, LayerResults(), layout=layout, base_bytes=4, weight_bytes=2, mean_error=0.0)
