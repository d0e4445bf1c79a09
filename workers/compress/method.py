"""What a compression method is, and the tables of all. A new method is one module and one line here.

Methods choose codes. How codes lie in files is the layout's business (workers/checkpoint/layouts), how they are
multiplied that of workers/formats.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.compress import codebook, fp8, llm_int8, rtn
from workers.formats.codes import Codes
from workers.formats.scheme import Scheme
from workers.protocol.recipe_names import method_of
from workers.protocol.recipes import (
    AwqRecipe,
    Fp4Recipe,
    Fp8Recipe,
    GptqRecipe,
    LlmInt8Recipe,
    Nf4Recipe,
    Recipe,
    RtnRecipe,
)


class Observer(Protocol):
    """What a method remembers of the inputs of the linears that read one tensor."""

    num_tokens: int

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in_features), fp32, of one sample."""
        ...

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """||X (W - W')^T|| / ||X W^T||, Frobenius norms, over the inputs that were seen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """The codes of one weight. Errors are relative, of the layer's outputs on the calibration data: with plain rounding
    and with the method's codes.
    """

    codes: Codes
    error_before: float
    error_after: float


class CalibratedMethod(Protocol):
    """Chooses a weight's codes by what its inputs look like. The same inputs give the same codes.

    is_sequential: linears that run later in a layer see what the compressed earlier ones make. folds_into: what may
    take the inverse of `scales`: "norms", "any" for norms and linears before, "" if the method has no scales.
    """

    is_sequential: bool
    folds_into: str

    def observer(self, in_features: int) -> Observer:
        """A new, empty memory."""
        ...

    def scales(self, weights: list[Tensor], observed: Observer) -> Tensor | None:
        """(K,), fp32: factors for the input columns of all linears that read one tensor; None leaves them alone.

        weights: (N, K) each, fp32. The layer before is divided by the factors, so the exact function does not change.
        """
        ...

    def round(self, weight: Tensor, observed: Observer, scales: Tensor | None) -> Rounded:
        """weight: (N, K), fp32, with its columns scaled already. scales: what was folded; inputs were seen without."""
        ...


def scheme_of(recipe: Recipe) -> Scheme:
    """What a recipe's codes look like. Not for casts, which have no codes."""
    if isinstance(recipe, RtnRecipe | GptqRecipe | AwqRecipe):
        # One scale for a tensor is stored as the same scale in every row.
        group_size = recipe.group_size or -1
        # GPTQ's act_order fixes the groups beforehand: what is stored is in the columns' own order.
        return Scheme(kind="grid", num_bits=recipe.num_bits, group_size=group_size, symmetric=recipe.symmetric)
    if isinstance(recipe, Nf4Recipe | Fp4Recipe):
        return Scheme(
            kind="nf4" if isinstance(recipe, Nf4Recipe) else "fp4",
            num_bits=4,
            group_size=recipe.block_size,
            double_quant=recipe.double_quant,
        )
    if isinstance(recipe, Fp8Recipe):
        activation_bits = 8 if recipe.dynamic_activations else None
        return Scheme(kind="float8", num_bits=8, group_size=recipe.block_size, activation_bits=activation_bits)
    if isinstance(recipe, LlmInt8Recipe):
        return Scheme(kind="outlier", num_bits=8, activation_bits=8, threshold=recipe.threshold)
    return Scheme(kind="grid", num_bits=8, activation_bits=8 if method_of(recipe) == "smoothquant" else None)


def without_data(recipe: Recipe) -> Recipe:
    """The same codes, rounded to nearest: for weights whose inputs are not observed."""
    if isinstance(recipe, GptqRecipe | AwqRecipe):
        return RtnRecipe(num_bits=recipe.num_bits, group_size=recipe.group_size, symmetric=recipe.symmetric)
    return recipe


def _round_to_grid(recipe: Any, weight: Tensor, scale_dtype: torch.dtype) -> Codes:
    return rtn.quantize(
        weight,
        num_bits=recipe.num_bits,
        group_size=recipe.group_size,
        is_symmetric=recipe.symmetric,
        scale_dtype=scale_dtype,
    )


def _round_to_channels(recipe: Any, weight: Tensor, scale_dtype: torch.dtype) -> Codes:
    codes = rtn.quantize(weight, num_bits=8, group_size=-1, is_symmetric=True, scale_dtype=scale_dtype)
    return replace(codes, activation_bits=scheme_of(recipe).activation_bits)


def _round_to_float8(recipe: Any, weight: Tensor, _: torch.dtype) -> Codes:
    return fp8.quantize(weight, recipe.dynamic_activations, None if recipe.block_size == -1 else recipe.block_size)


# Codes from a weight alone: (recipe, weight, dtype of scales) -> codes.
ROUNDING: dict[str, Callable[[Any, Tensor, torch.dtype], Codes]] = {
    "rtn": _round_to_grid,
    "int8": _round_to_channels,
    "smoothquant": _round_to_channels,
    "llm_int8": lambda recipe, weight, _: llm_int8.quantize(weight, recipe.threshold),
    "nf4": lambda recipe, weight, _: codebook.quantize(weight, "nf4", recipe.block_size, recipe.double_quant),
    "fp4": lambda recipe, weight, _: codebook.quantize(weight, "fp4", recipe.block_size, recipe.double_quant),
    "fp8": _round_to_float8,
}


def round_weight(recipe: Recipe, weight: Tensor, scale_dtype: torch.dtype) -> Codes:
    """The codes of a recipe that looks at no data. weight: (N, K), floating point.

    Raises WorkerError (variant_corrupt) for a weight with NaN or infinity.
    """
    return ROUNDING[method_of(recipe)](recipe, weight, scale_dtype)
