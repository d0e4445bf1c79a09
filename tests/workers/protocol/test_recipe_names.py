"""Names of recipes: made and read back, with the options that they carry."""

import msgspec
import pytest

from workers.protocol.recipe_names import (
    LAYOUTS,
    RECIPES,
    default_max_kl,
    needs_calibration,
    parse_method,
    variant_suffix,
)
from workers.protocol.recipes import (
    AutoRecipe,
    AwqRecipe,
    CastRecipe,
    Fp8Recipe,
    GptqRecipe,
    Int8Recipe,
    LlmInt8Recipe,
    Nf4Recipe,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)

NAMED: list[tuple[Recipe, str]] = [
    (GptqRecipe(), "gptq-int4-g128"),
    (AutoRecipe(bits=4.25), "auto-4.25bits-g128"),
    (AutoRecipe(bits=3.0, group_size=-1, symmetric=False), "auto-3bits-channel-asym"),
    (AutoRecipe(max_bytes=3_000_000_000, group_size=32), "auto-3000000000bytes-g32"),
    (GptqRecipe(num_bits=3, group_size=64, symmetric=False, act_order=False), "gptq-int3-g64-asym-noact"),
    (AwqRecipe(), "awq-int4-g128"),
    (AwqRecipe(symmetric=True), "awq-int4-g128-sym"),
    (RtnRecipe(num_bits=2, group_size=-1), "rtn-int2-channel"),
    (RtnRecipe(num_bits=8, group_size=0), "rtn-int8-tensor"),
    (Int8Recipe(), "int8"),
    (LlmInt8Recipe(), "llm-int8"),
    (Nf4Recipe(), "nf4"),
    (Nf4Recipe(double_quant=False), "nf4-single"),
    (SmoothQuantRecipe(), "smoothquant-w8a8"),
    (Fp8Recipe(), "fp8"),
    (Fp8Recipe(dynamic_activations=False), "fp8-weights"),
    (CastRecipe(dtype="fp16"), "cast-fp16"),
]


@pytest.mark.parametrize(("recipe", "name"), NAMED, ids=[name for _, name in NAMED])
def test_name_of_a_recipe_means_that_recipe(recipe: Recipe, name: str) -> None:
    assert variant_suffix(recipe) == name

    parsed = parse_method(name)

    assert parsed is not None
    assert msgspec.convert({"type": parsed[0], **parsed[1]}, Recipe) == recipe


DATA_METHODS = {"gptq", "awq", "smoothquant", "auto"}
OTHERS = ["gptq-int5-g128", "gptq-int4-g", "int4", "rtn-int4-g128-", "GPTQ", "", "cast-int8", "auto-4", "auto-4.5bytes"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_mean_nothing(name: str) -> None:
    assert parse_method(name) is None


def test_tables_cover_every_method() -> None:
    assert set(LAYOUTS) == set(RECIPES)
    assert {name for name, recipe in RECIPES.items() if needs_calibration(recipe())} == DATA_METHODS


def test_bound_is_wider_with_fewer_bits() -> None:
    bounds = [default_max_kl(RtnRecipe(num_bits=bits)) for bits in (8, 4, 3, 2)]

    assert bounds == sorted(set(bounds))
    assert bounds[-1] < 6
