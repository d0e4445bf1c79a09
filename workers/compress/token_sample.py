"""What AWQ and SmoothQuant remember of a linear's inputs: how large each channel is, and some tokens to judge by."""

import torch
from torch import Tensor

# 256 tokens cost AWQ a few percent of KL divergence at 3 bits; 512 to 8,192 could not be told apart (three small
# trained models).
_MAX_TOKENS = 1024


class TokenSample:
    """Mean and largest magnitude per channel over all tokens, and an evenly spaced subset of at most `max_tokens`.

    Which tokens are kept depends on their number alone: the same text gives the same sample.
    """

    def __init__(self, in_features: int, max_tokens: int = _MAX_TOKENS) -> None:
        self.num_tokens = 0
        self._in_features = in_features
        self._max_tokens = max_tokens
        self._sum: Tensor | None = None
        self._absmax: Tensor | None = None
        self._kept: list[Tensor] = []
        self._stride = 1

    def add(self, inputs: Tensor) -> None:
        """inputs: (tokens, in_features), fp32."""
        if not len(inputs):
            return
        size = inputs.abs()
        total, largest = size.sum(dim=0), size.amax(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self._absmax = largest if self._absmax is None else torch.maximum(self._absmax, largest)
        self._kept.append(inputs[-self.num_tokens % self._stride :: self._stride].clone())
        self.num_tokens += len(inputs)
        while sum(map(len, self._kept)) > self._max_tokens:
            self._stride *= 2
            self._kept = [torch.cat(self._kept)[::2].clone()]

    @property
    def mean(self) -> Tensor:
        """(K,), fp32: mean |x| over all tokens; zeros before the first one."""
        return torch.zeros(self._in_features) if self._sum is None else self._sum / self.num_tokens

    @property
    def absmax(self) -> Tensor:
        """(K,), fp32: the largest |x| of all tokens; zeros before the first one."""
        return torch.zeros(self._in_features) if self._absmax is None else self._absmax

    @property
    def tokens(self) -> Tensor:
        """(tokens, K), fp32: the subset."""
        self._kept = [torch.cat(self._kept)] if self._kept else [torch.zeros(0, self._in_features)]
        return self._kept[0]

    def relative_error(self, weight: Tensor, approximation: Tensor) -> float:
        """||X (W - W')^T|| / ||X W^T|| over the subset; 0 where the outputs are."""
        moments = Moments(self.tokens)
        exact = moments.squared_norm(weight)
        return (moments.squared_norm(weight - approximation) / exact) ** 0.5 if exact > 0 else 0.0


class Moments:
    """||X M^T||^2 for one X and many M, in whichever way costs less: through X itself or through X^T X."""

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs
        num_tokens, in_features = inputs.shape
        self._gram = inputs.T @ inputs if num_tokens > in_features else None

    def squared_norm(self, matrix: Tensor) -> float:
        """matrix: (N, K), fp32."""
        if self._gram is None:
            return float((self._inputs @ matrix.T).square().sum())
        return float(((matrix @ self._gram) * matrix).sum())
