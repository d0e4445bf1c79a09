"""The methods that look at activations, by their names on the wire. A new one is one module and one line here."""

from collections.abc import Callable
from typing import Any

import torch

from workers.compress.awq_method import AwqMethod
from workers.compress.gptq_method import GptqMethod
from workers.compress.method import CalibratedMethod
from workers.compress.smoothquant_method import SmoothQuantMethod
from workers.protocol.recipe_names import method_of
from workers.protocol.recipes import Recipe

# name -> (recipe, dtype of the grids' scales) -> method
_METHODS: dict[str, Callable[[Any, torch.dtype], CalibratedMethod]] = {
    "gptq": lambda recipe, dtype: GptqMethod(recipe=recipe, scale_dtype=dtype, is_sequential=recipe.true_sequential),
    # Rows of a linear before are divided too, but not where all rows share one scale: it would fit them less.
    "awq": lambda recipe, dtype: AwqMethod(
        recipe=recipe, scale_dtype=dtype, folds_into="norms" if recipe.group_size == 0 else "any"
    ),
    "smoothquant": lambda recipe, dtype: SmoothQuantMethod(recipe=recipe, scale_dtype=dtype),
}


def calibrated_method(recipe: Recipe, scale_dtype: torch.dtype) -> CalibratedMethod | None:
    """The method of a recipe; None if it looks at no data."""
    make = _METHODS.get(method_of(recipe))
    return None if make is None else make(recipe, scale_dtype)
