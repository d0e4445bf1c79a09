"""AWQ as a calibrated method: searches the scales of a group of linears, then each one's ranges."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.compress import awq
from workers.compress.method import Observer, Rounded
from workers.compress.token_sample import TokenSample
from workers.compress.weight_grid import WeightGrid
from workers.formats.codes import GridCodes
from workers.protocol.recipes import AwqRecipe


@dataclass(slots=True, kw_only=True)
class AwqMethod:
    """See `CalibratedMethod`."""

    recipe: AwqRecipe
    scale_dtype: torch.dtype
    folds_into: str
    is_sequential: bool = False

    def observer(self, in_features: int) -> TokenSample:
        """Mean |x| and some tokens."""
        return TokenSample(in_features)

    def scales(self, weights: list[Tensor], observed: Observer) -> Tensor | None:
        """What the search finds; None if it is alpha = 0, plain rounding."""
        assert isinstance(observed, TokenSample)
        found = awq.search_scales(weights, observed.mean, observed.tokens, self._points(), self.recipe.num_ratios)
        return found.scales if found.alpha > 0 else None

    def round(self, weight: Tensor, observed: Observer, scales: Tensor | None) -> Rounded:
        """With ranges clipped only where that lowers the error of the whole output: groups were judged one by one."""
        assert isinstance(observed, TokenSample)
        points = self._points()
        inputs = observed.tokens if scales is None else observed.tokens / scales
        exact = weight if scales is None else weight / scales
        codes = points.codes(weight)
        after = self._error(observed, exact, codes, scales)
        before = after if scales is None else observed.relative_error(exact, points.rounded(exact))
        if self.recipe.clip:
            clipped = points.codes(awq.clip(weight, awq.search_clip(weight, inputs, points)))
            error = self._error(observed, exact, clipped, scales)
            codes, after = (clipped, error) if error < after else (codes, after)
        return Rounded(codes=codes, error_before=before, error_after=after)

    def _points(self) -> WeightGrid:
        return WeightGrid(
            num_bits=self.recipe.num_bits,
            group_size=self.recipe.group_size,
            is_symmetric=self.recipe.symmetric,
            scale_dtype=self.scale_dtype,
        )

    @staticmethod
    def _error(observed: TokenSample, exact: Tensor, codes: GridCodes, scales: Tensor | None) -> float:
        values = codes.dequantize()
        return observed.relative_error(exact, values if scales is None else values / scales)
