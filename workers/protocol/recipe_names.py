"""What both sides say about a recipe without torch: its name, its bits, what it may be stored in.

`variant_suffix` is the second part of a variant's id unless its maker gives another; `parse_method` is its inverse and
also takes a bare method. Both sides name recipes through this file only.
"""

import re
from typing import Any, Final

from msgspec import Struct

from workers.protocol.recipes import (
    AutoRecipe,
    AwqRecipe,
    CastRecipe,
    Fp4Recipe,
    Fp8Recipe,
    GptqRecipe,
    Int8Recipe,
    LlmInt8Recipe,
    Nf4Recipe,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)

RECIPES: Final[dict[str, type[Struct]]] = {
    "cast": CastRecipe,
    "rtn": RtnRecipe,
    "int8": Int8Recipe,
    "llm_int8": LlmInt8Recipe,
    "nf4": Nf4Recipe,
    "fp4": Fp4Recipe,
    "gptq": GptqRecipe,
    "awq": AwqRecipe,
    "smoothquant": SmoothQuantRecipe,
    "fp8": Fp8Recipe,
    "auto": AutoRecipe,
}
# Layouts that have room for a method's numbers; bits and groups that one cannot store are refused by the job's plan.
LAYOUTS: Final[dict[str, tuple[str, ...]]] = {
    "cast": (),
    "rtn": ("pack-quantized", "gptq", "gptq_v2", "awq", "int-quantized"),
    "int8": ("pack-quantized", "int-quantized", "gptq", "gptq_v2"),
    "llm_int8": ("bitsandbytes",),
    "nf4": ("bitsandbytes",),
    "fp4": ("bitsandbytes",),
    "gptq": ("gptq", "gptq_v2", "pack-quantized"),
    "awq": ("awq", "gptq", "gptq_v2", "pack-quantized"),
    "smoothquant": ("int-quantized",),
    "fp8": ("float-quantized", "fp8"),
    "auto": ("pack-quantized",),
}
# Nats per token over the verification text: what a working variant of a trained model stays below with room to spare,
# and a broken file does not (uniform noise is ln(vocabulary), 6 for the smallest vocabularies).
_MAX_KL: Final = {16: 0.05, 8: 0.1, 4: 1.0, 3: 2.0, 2: 5.0}
_GRID: Final = re.compile(r"(rtn|gptq|awq)-int([2348])(?:-g(\d{1,4})|-(channel|tensor))?(?:-(sym|asym))?(-noact)?")
_AUTO: Final = re.compile(
    r"auto-(?:(\d{1,2}(?:\.\d{1,16})?)bits|(\d{1,16})bytes)(?:-g(\d{1,4})|-(channel))?(?:-(sym|asym))?"
)
# Layouts of compressed-tensors: config.json can give each module another scheme.
MIXED_LAYOUTS: Final = frozenset({"pack-quantized", "int-quantized", "float-quantized"})
# Layouts whose compressed output head transformers takes for a plain one, and fills with random numbers.
LAYOUTS_WITHOUT_HEAD: Final = frozenset({"gptq", "gptq_v2", "awq"})
_NO_GROUPS: Final = {-1: "-channel", 0: "-tensor"}
_FIXED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llm-int8": ("llm_int8", {}),
    "smoothquant-w8a8": ("smoothquant", {}),
    "nf4-single": ("nf4", {"double_quant": False}),
    "fp4-single": ("fp4", {"double_quant": False}),
    "fp8-weights": ("fp8", {"dynamic_activations": False}),
    "fp8-block128": ("fp8", {"block_size": 128}),
    "fp8-block128-weights": ("fp8", {"block_size": 128, "dynamic_activations": False}),
    **{f"cast-{dtype}": ("cast", {"dtype": dtype}) for dtype in ("bf16", "fp16", "fp32")},
}


def default_layout(recipe: Recipe) -> str:
    """The layout that most readers know for what a recipe makes; empty for casts, which are plain files."""
    if isinstance(recipe, CastRecipe):
        return ""
    if isinstance(recipe, Fp8Recipe):
        # 'fp8' stores tiles with rounded activations and nothing else
        return "float-quantized" if recipe.block_size == -1 or not recipe.dynamic_activations else "fp8"
    if isinstance(recipe, GptqRecipe) and not recipe.symmetric:
        # version 1 cannot store every zero point
        return "gptq_v2"
    if isinstance(recipe, AwqRecipe) and recipe.num_bits != 4:
        return "pack-quantized"
    return LAYOUTS[method_of(recipe)][0]


def are_stored_alike(one: Recipe, other: Recipe) -> bool:
    """True if the codes of both differ in how they were chosen only, so that every layout can hold them together."""
    return _stored_as(one) == _stored_as(other)


def _stored_as(recipe: Recipe) -> object:
    if isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe):
        return (recipe.num_bits, recipe.group_size or -1, recipe.symmetric)
    return (8, -1, True) if isinstance(recipe, Int8Recipe) else recipe


def method_of(recipe: Recipe) -> str:
    """The method's name on the wire: `gptq`."""
    return str(recipe.__struct_config__.tag)


def variant_suffix(recipe: Recipe) -> str:
    """The short name: `gptq-int4-g128`, `rtn-int3-channel`, `nf4`, `smoothquant-w8a8`.

    Grid options that differ from their method's default are part of it; damping, alpha and the like are not.
    """
    if isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe):
        return _grid_suffix(recipe)
    if isinstance(recipe, Nf4Recipe | Fp4Recipe):
        return method_of(recipe) + ("" if recipe.double_quant else "-single")
    if isinstance(recipe, CastRecipe):
        return f"cast-{recipe.dtype}"
    if isinstance(recipe, Fp8Recipe):
        block = "" if recipe.block_size == -1 else f"-block{recipe.block_size}"
        return "fp8" + block + ("" if recipe.dynamic_activations else "-weights")
    if isinstance(recipe, AutoRecipe):
        return _auto_suffix(recipe)
    names = {"llm_int8": "llm-int8", "smoothquant": "smoothquant-w8a8"}
    return names.get(method_of(recipe), method_of(recipe))


def parse_method(name: str) -> tuple[str, dict[str, Any]] | None:
    """The method and the options that a name means: of a method itself or of `variant_suffix`; None for neither."""
    if name in RECIPES:
        return name, {}
    if name in _FIXED:
        method, fixed = _FIXED[name]
        return method, dict(fixed)
    if (match := _AUTO.fullmatch(name)) is not None:
        return "auto", _auto_options(*match.groups())
    match = _GRID.fullmatch(name)
    if match is None:
        return None
    method, num_bits, group, ungrouped, symmetry, no_act_order = match.groups()
    options: dict[str, Any] = {"num_bits": int(num_bits)}
    if group is not None:
        options["group_size"] = int(group)
    elif ungrouped is not None:
        options["group_size"] = {"channel": -1, "tensor": 0}[ungrouped]
    if symmetry is not None:
        options["symmetric"] = symmetry == "sym"
    if no_act_order is not None:
        options["act_order"] = False
    return method, options


def num_bits_of(recipe: Recipe) -> int:
    """Bits of a stored weight, without its scales; of `auto`, the most that all linears can have within `bits`."""
    if isinstance(recipe, AutoRecipe):
        within = [one for one in recipe.candidate_bits if one <= (recipe.bits or 0)]
        return max(within, default=min(recipe.candidate_bits))
    if isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe):
        return recipe.num_bits
    if isinstance(recipe, Nf4Recipe | Fp4Recipe):
        return 4
    if isinstance(recipe, CastRecipe):
        return 32 if recipe.dtype == "fp32" else 16
    return 8


def needs_calibration(recipe: Recipe) -> bool:
    """True if the method looks at activations."""
    return isinstance(recipe, GptqRecipe | AwqRecipe | SmoothQuantRecipe | AutoRecipe)


def default_max_kl(recipe: Recipe) -> float:
    """KL(base || variant), mean nats per token, above which a variant of this recipe counts as broken."""
    return _MAX_KL[min(16, num_bits_of(recipe))]


def _grid_suffix(recipe: RtnRecipe | GptqRecipe | AwqRecipe) -> str:
    group = _NO_GROUPS.get(recipe.group_size, f"-g{recipe.group_size}")
    default = type(recipe)().symmetric
    symmetry = "" if recipe.symmetric == default else ("-sym" if recipe.symmetric else "-asym")
    order = "-noact" if isinstance(recipe, GptqRecipe) and not recipe.act_order else ""
    return f"{method_of(recipe)}-int{recipe.num_bits}{group}{symmetry}{order}"


def _auto_suffix(recipe: AutoRecipe) -> str:
    budget = (
        f"{recipe.max_bytes}bytes" if recipe.max_bytes is not None else f"{recipe.bits}".removesuffix(".0") + "bits"
    )
    group = _NO_GROUPS.get(recipe.group_size, f"-g{recipe.group_size}")
    return f"auto-{budget}{group}" + ("" if recipe.symmetric else "-asym")


def _auto_options(
    bits: str | None, max_bytes: str | None, group: str | None, channel: str | None, symmetry: str | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"bits": float(bits)} if bits is not None else {"max_bytes": int(max_bytes or 0)}
    if group is not None or channel is not None:
        options["group_size"] = int(group) if group is not None else -1
    if symmetry is not None:
        options["symmetric"] = symmetry == "sym"
    return options
