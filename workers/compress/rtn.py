"""Round to nearest: every weight goes to the closest point of its channel's grid. No data, no search.

With 8 bits and one scale per output channel this loses about 0.8 % of each weight matrix's norm, which moves the
next-token distribution by less than 0.001 nats on trained models. At 4 bits it is the baseline that others beat.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.formats import grid
from workers.formats.int8 import SCALE_DTYPE
from workers.protocol.errors import WorkerError, WorkerErrorCode


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundToNearest:
    """Symmetric absmax rounding, one scale per output channel."""

    format: str
    num_bits: int

    def compress(self, weight: Tensor) -> dict[str, Tensor]:
        """weight: (N, K), floating point. Returns weight (N, K) int8 and weight_scale (N, 1) bf16.

        Raises WorkerError (variant_corrupt) for a weight with NaN or infinity.
        """
        if not torch.isfinite(weight).all():
            raise WorkerError(WorkerErrorCode.VARIANT_CORRUPT, "a weight of the base model is NaN or infinite")
        scale = grid.channel_scales(weight, self.num_bits, SCALE_DTYPE)
        return {"weight": grid.quantize(weight, scale, self.num_bits), "weight_scale": scale}

    def restore(self, tensors: dict[str, Tensor]) -> Tensor:
        """The weight that `compress`'s tensors stand for: (N, K), fp32."""
        return grid.dequantize(tensors["weight"], tensors["weight_scale"])
