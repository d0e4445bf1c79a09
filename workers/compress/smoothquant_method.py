"""SmoothQuant as a calibrated method: smooths the inputs of a group of linears, then rounds to W8A8."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.compress import rtn, smoothquant
from workers.compress.method import Observer, Rounded
from workers.compress.token_sample import TokenSample
from workers.formats.codes import GridCodes
from workers.protocol.recipes import SmoothQuantRecipe


@dataclass(slots=True, kw_only=True)
class SmoothQuantMethod:
    """See `CalibratedMethod`. Only norms take the factors, as in the paper."""

    recipe: SmoothQuantRecipe
    scale_dtype: torch.dtype
    is_sequential: bool = False
    folds_into: str = "norms"

    def observer(self, in_features: int) -> TokenSample:
        """Largest |x| and some tokens."""
        return TokenSample(in_features)

    def scales(self, weights: list[Tensor], observed: Observer) -> Tensor | None:
        """The paper's factors; None where they make the outputs worse, as without outliers they may."""
        assert isinstance(observed, TokenSample)
        largest = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
        factors = smoothquant.smoothing_scales(observed.absmax, largest, self.recipe.alpha)
        plain = sum(self._error(weight, observed.tokens, None) ** 2 for weight in weights)
        smooth = sum(self._error(weight * factors, observed.tokens, factors) ** 2 for weight in weights)
        return factors if smooth < plain else None

    def round(self, weight: Tensor, observed: Observer, scales: Tensor | None) -> Rounded:
        """8 bits per output channel; errors with each token's activations rounded to 8 bits too."""
        assert isinstance(observed, TokenSample)
        after = self._error(weight, observed.tokens, scales)
        before = after if scales is None else self._error(weight / scales, observed.tokens, None)
        codes = replace(self._codes(weight), activation_bits=8)
        return Rounded(codes=codes, error_before=before, error_after=after)

    def _codes(self, weight: Tensor) -> GridCodes:
        return rtn.quantize(weight, num_bits=8, group_size=-1, is_symmetric=True, scale_dtype=self.scale_dtype)

    def _error(self, weight: Tensor, inputs: Tensor, scales: Tensor | None) -> float:
        """Relative error of W8A8 outputs. weight: (N, K), scaled already; inputs: (tokens, K), not scaled yet."""
        smooth = inputs if scales is None else inputs / scales
        exact = smooth @ weight.T
        norm = torch.linalg.vector_norm(exact)
        rounded = smoothquant.round_tokens(smooth) @ self._codes(weight).dequantize().T
        return float(torch.linalg.vector_norm(rounded - exact) / norm) if norm > 0 else 0.0
