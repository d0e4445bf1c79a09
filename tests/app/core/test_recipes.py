"""Methods and options as clients write them: what becomes of good ones, and what a bad one's owner reads."""

from typing import Any

import pytest

from app.core.recipes import check_divides, check_layout, recipe_of
from app.errors import InvalidRequest
from workers.protocol.recipes import AutoRecipe, AwqRecipe, GptqRecipe, Int8Recipe, RtnRecipe


def test_names_and_options_make_the_same_recipe() -> None:
    named = recipe_of("gptq-int3-g64", {"damp_percent": 0.05})

    assert named == recipe_of("gptq", {"num_bits": 3, "group_size": 64, "damp_percent": 0.05})
    assert named == GptqRecipe(num_bits=3, group_size=64, damp_percent=0.05)
    assert recipe_of("int8", {}) == Int8Recipe()
    assert recipe_of("auto-4.25bits-g32", {}) == recipe_of("auto", {"bits": 4.25, "group_size": 32})
    assert recipe_of("auto", {"bits": 4, "candidate_bits": [3, 8]}) == AutoRecipe(bits=4.0, candidate_bits=(3, 8))
    assert recipe_of("rtn", {"group_size": 0}).group_size == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "options", "param", "said"),
    [
        ("gptk", {}, "method", ["'gptk'", "gptq", "nf4"]),
        ("gptq", {"num_bits": 5}, "options.num_bits", ["5", "2, 3, 4, 8"]),
        ("gptq", {"num_bits": "4"}, "options.num_bits", ["2, 3, 4, 8"]),
        ("gptq", {"num_bits": True}, "options.num_bits", ["2, 3, 4, 8"]),
        ("gptq", {"group_size": 2048}, "options.group_size", ["2048", "from -1 to 1024"]),
        ("gptq", {"group_size": 0}, "options.group_size", ["8 to 1024 or -1"]),
        ("rtn", {"group_size": 3}, "options.group_size", ["8 to 1024", "0 (one scale per tensor)"]),
        ("gptq", {"damp_percent": 0}, "options.damp_percent", ["a number above 0", "to 1"]),
        ("gptq", {"symmetric": 1}, "options.symmetric", ["true or false"]),
        ("smoothquant", {"alpha": 1.5}, "options.alpha", ["1.5", "from 0.0 to 1.0"]),
        ("nf4", {"num_bits": 4}, "options.num_bits", ["block_size", "double_quant"]),
        ("int8", {"x": 1}, "options.x", ["it has none"]),
        ("auto", {}, "options.bits", ["one budget", "max_bytes"]),
        ("auto", {"bits": 4.25, "max_bytes": 5}, "options.bits", ["one budget"]),
        ("auto", {"bits": 0.5}, "options.bits", ["0.5", "from 1.0 to 32.0"]),
        ("auto", {"max_bytes": 0}, "options.max_bytes", ["an integer from 1"]),
        (
            "auto",
            {"bits": 4, "candidate_bits": [3, 5]},
            "options.candidate_bits",
            ["list of 2 to 5 of 2, 3, 4, 8, 16"],
        ),
        ("auto", {"bits": 4, "candidate_bits": 3}, "options.candidate_bits", ["a list of"]),
        ("auto", {"bits": 4, "candidate_bits": [4, 4]}, "options.candidate_bits", ["two or more different"]),
        ("auto", {"bits": 4, "group_size": 3}, "options.group_size", ["8 to 1024 or -1"]),
        ("auto-0bits", {}, "options.bits", ["0", "from 1.0 to 32.0"]),
        ("gptq-int4-g2048", {}, "options.group_size", ["2048", "from -1 to 1024"]),
        ("auto-4.25bits-g32", {"bits": 4}, "options.bits", ["is 4", "says 4.25"]),
        ("gptq-int4-g128", {"num_bits": 3}, "options.num_bits", ["is 3", "says 4"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_bad_option_is_named_with_what_is_allowed(
    method: str, options: dict[str, Any], param: str, said: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        recipe_of(method, options)

    assert refused.value.param == param
    assert all(part in refused.value.message for part in said), refused.value.message


def test_override_errors_say_where_they_stand() -> None:
    with pytest.raises(InvalidRequest) as refused:
        recipe_of("awq", {"num_bits": 5}, "overrides[2].")

    assert refused.value.param == "overrides[2].options.num_bits"


@pytest.mark.parametrize(
    ("layout", "recipe"),
    [
        ("awq", AwqRecipe(num_bits=3)),
        ("gptq", RtnRecipe(group_size=0)),
        ("int-quantized", RtnRecipe(num_bits=4)),
        ("bitsandbytes", GptqRecipe()),
        ("nonsense", Int8Recipe()),
    ],
    ids=["3-bit-awq", "tensor-gptq", "4-bit-int", "gptq-bnb", "unknown"],
)
def test_layout_that_cannot_store_the_scheme_is_refused(layout: str, recipe: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_layout(layout, recipe)

    assert refused.value.param == "layout"


def test_layout_that_can_is_taken() -> None:
    check_layout("awq", AwqRecipe())
    check_layout("gptq_v2", GptqRecipe(num_bits=3, group_size=-1))
    check_layout(None, GptqRecipe())


def test_groups_must_fill_the_rows() -> None:
    check_divides(GptqRecipe(group_size=64), 192)
    check_divides(GptqRecipe(group_size=-1), 100)
    with pytest.raises(InvalidRequest) as refused:
        check_divides(GptqRecipe(group_size=128), 192)

    assert "16, 32, 64 or -1" in refused.value.message
