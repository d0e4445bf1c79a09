"""GPTQ as a calibrated method: remembers the Hessian of a linear's inputs, scales nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compress import gptq
from workers.compress.method import Observer, Rounded
from workers.protocol.recipes import GptqRecipe


@dataclass(slots=True, kw_only=True)
class GptqMethod:
    """See `CalibratedMethod`."""

    recipe: GptqRecipe
    scale_dtype: torch.dtype
    is_sequential: bool
    folds_into: str = ""

    def observer(self, in_features: int) -> gptq.HessianAccumulator:
        """H = mean of 2 x x^T, (K, K): by far the most memory that this method takes."""
        return gptq.HessianAccumulator(in_features)

    def scales(self, weights: list[Tensor], observed: Observer) -> None:
        """None: GPTQ leaves columns alone."""

    def round(self, weight: Tensor, observed: Observer, scales: Tensor | None) -> Rounded:
        """Never worse than plain rounding on the data that was seen: where it would be, plain rounding it is."""
        assert isinstance(observed, gptq.HessianAccumulator)
        assert scales is None
        recipe = self.recipe
        found = gptq.quantize(
            weight,
            observed.mean,
            num_bits=recipe.num_bits,
            group_size=recipe.group_size,
            is_symmetric=recipe.symmetric,
            act_order=recipe.act_order,
            damp_percent=max(recipe.damp_percent, _needed_damping(observed.num_tokens, weight.shape[1])),
            scale_dtype=self.scale_dtype,
        )
        before = observed.relative_error(weight, found.plain.dequantize())
        after = observed.relative_error(weight, found.codes.dequantize())
        if after > before:
            return Rounded(codes=found.plain, error_before=before, error_after=before)
        return Rounded(codes=found.codes, error_before=before, error_after=after)


def _needed_damping(num_tokens: int, in_features: int) -> float:
    """(K / tokens)**1.5 / 2, as a share of the mean diagonal: what did best on text that the Hessian was not made of.

    A Hessian of as many tokens as columns has directions that say nothing about other text. With 0.01 there, GPTQ's
    outputs there are off by up to 1.5 times as much as plain rounding's; with this, never by more (the linears of three
    small trained models, K / 4 to 16 K tokens). From 14 K tokens on 0.01 is enough.
    """
    return 0.5 * float((in_features / num_tokens) ** 1.5)
