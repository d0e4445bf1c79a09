"""From the method and options of a request to a recipe; errors name the field, the value and what is allowed."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from app.errors import InvalidRequest
from workers.protocol.recipe_names import LAYOUTS, RECIPES, default_layout, method_of, parse_method
from workers.protocol.recipes import AutoRecipe, AwqRecipe, GptqRecipe, Recipe, RtnRecipe

_MIN_GROUP: Final = 8
# With one there is nothing to choose.
_MIN_CANDIDATES: Final = 2
_MAX_ECHOED_CHARS: Final = 80
_TYPES: Final = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def recipe_of(method: str, options: Mapping[str, Any], prefix: str = "") -> Recipe:
    """The recipe that a method (or a name such as `gptq-int4-g128`) and its options ask for.

    prefix: where in the body this stands, `overrides[0].` for instance. Raises InvalidRequest.
    """
    parsed = parse_method(method)
    if parsed is None:
        raise InvalidRequest(
            f"Unknown method '{_clip(method)}'; there are {', '.join(sorted(RECIPES))}, and names such as "
            "'gptq-int4-g128' or 'rtn-int3-channel'.",
            param=f"{prefix}method",
        )
    name, named = parsed
    for option, value in named.items():
        if option in options and options[option] != value:
            raise InvalidRequest(
                f"'{prefix}options.{option}' is {_clip(options[option])}, and '{method}' says {value}; give one.",
                param=f"{prefix}options.{option}",
            )
    kind = RECIPES[name]
    _check_options(name, kind, {**named, **options}, prefix)
    recipe: Recipe = msgspec.convert({"type": name, **named, **options}, Recipe)
    _check_group(recipe, prefix)
    if isinstance(recipe, AutoRecipe):
        _check_budget(recipe, prefix)
    return recipe


def check_layout(layout: str | None, recipe: Recipe) -> None:
    """Raise InvalidRequest if no file of this layout can hold what the recipe makes."""
    if layout is None:
        return
    method = method_of(recipe)
    allowed = LAYOUTS[method]
    if layout not in allowed:
        fitting = f"'{method}' can be stored as {', '.join(allowed)}" if allowed else f"'{method}' has only one"
        raise InvalidRequest(
            f"Layout '{_clip(layout)}' does not hold what '{method}' makes; {fitting}.", param="layout"
        )
    if isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe):
        _check_grid_layout(layout, recipe)
    if layout == "fp8" and default_layout(recipe) != "fp8":
        raise InvalidRequest(
            "Layout 'fp8' stores tiles (options.block_size 128) and rounded activations; 'float-quantized' stores both "
            "kinds of scales.",
            param="layout",
        )


def check_divides(recipe: Recipe, hidden_size: int | None, prefix: str = "") -> None:
    """Raise InvalidRequest if groups of this size do not fill the rows of a model this wide."""
    if not isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe | AutoRecipe) or hidden_size is None:
        return
    size = recipe.group_size
    if size > 0 and hidden_size % size:
        divisors = [one for one in (16, 32, 64, 128, 256) if hidden_size % one == 0]
        fitting = f"{', '.join(map(str, divisors))} or " if divisors else ""
        raise InvalidRequest(
            f"Groups of {size} do not divide the model's {hidden_size} columns; give {fitting}-1 (one per row).",
            param=f"{prefix}options.group_size",
        )


def _check_grid_layout(layout: str, recipe: RtnRecipe | GptqRecipe | AwqRecipe) -> None:
    problem = None
    if layout == "awq" and recipe.num_bits != 4:
        problem = f"{recipe.num_bits} bits; it stores 4"
    elif layout == "int-quantized" and recipe.num_bits != 8:
        problem = f"{recipe.num_bits} bits; it stores 8"
    elif layout in ("awq", "gptq", "gptq_v2") and recipe.group_size == 0:
        problem = "one scale for a whole tensor; give a group_size or -1"
    elif layout == "gptq" and not recipe.symmetric:
        problem = "every zero point; 'gptq_v2' has"
    elif layout == "int-quantized" and not (recipe.symmetric and recipe.group_size <= 0):
        problem = "groups or zero points; 'pack-quantized' has"
    if problem is not None:
        raise InvalidRequest(f"Layout '{layout}' has no room for {problem}.", param="layout")


def _check_group(recipe: Recipe, prefix: str) -> None:
    if not isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe | AutoRecipe):
        return
    size, method = recipe.group_size, method_of(recipe)
    is_whole_tensor = size == 0 and not isinstance(recipe, RtnRecipe)
    if 0 < size < _MIN_GROUP or is_whole_tensor:
        whole = ", 0 (one scale per tensor)" if isinstance(recipe, RtnRecipe) else ""
        raise InvalidRequest(
            f"Invalid '{prefix}options.group_size': {size}; '{method}' takes {_MIN_GROUP} to 1024 or -1 (one group per "
            f"row){whole}.",
            param=f"{prefix}options.group_size",
        )


def _check_budget(recipe: AutoRecipe, prefix: str) -> None:
    if (recipe.bits is None) == (recipe.max_bytes is None):
        raise InvalidRequest(
            "Method 'auto' takes one budget: options.bits, an average per weight such as 4.25, or options.max_bytes, "
            "the size of all weights.",
            param=f"{prefix}options.bits",
        )
    if len(set(recipe.candidate_bits)) < _MIN_CANDIDATES:
        raise InvalidRequest(
            f"'{prefix}options.candidate_bits' is {list(recipe.candidate_bits)}; give two or more different ones.",
            param=f"{prefix}options.candidate_bits",
        )


def _check_options(method: str, kind: type[Struct], options: Mapping[str, Any], prefix: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for option, value in options.items():
        param = f"{prefix}options.{_clip(option)}"
        field = fields.get(option)
        if field is None:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise InvalidRequest(f"Method '{method}' has no option '{_clip(option)}'; {known}.", param=param)
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            raise InvalidRequest(
                f"Invalid '{param}': {_clip(value)}; it takes {_allowed(field.type)}.", param=param
            ) from error


def _allowed(kind: Any) -> str:
    """What a field takes, in words: `2, 3, 4, 8`, `an integer from -1 to 1024`."""
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.UnionType):
        # An option that may be left out.
        info = next(one for one in info.types if not isinstance(one, msgspec.inspect.NoneType))
    if isinstance(info, msgspec.inspect.VarTupleType):
        assert isinstance(info.item_type, msgspec.inspect.LiteralType)
        return f"a list of {info.min_length} to {info.max_length} of {', '.join(map(str, info.item_type.values))}"
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(str(value) for value in info.values)
    if isinstance(info, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        word = "an integer" if isinstance(info, msgspec.inspect.IntType) else "a number"
        low = f" from {info.ge}" if info.ge is not None else f" above {info.gt}" if info.gt is not None else ""
        return word + low + (f" to {info.le}" if info.le is not None else "")
    return _TYPES.get(kind, "another type")


def _clip(value: object) -> str:
    text = str(value)
    return text if len(text) <= _MAX_ECHOED_CHARS else text[: _MAX_ECHOED_CHARS - 1] + "…"
