"""FP8: weights as E4M3 numbers, each output channel or tile scaled so that its largest becomes 448, E4M3's largest."""

import torch
from torch import Tensor
from torch.nn import functional

from workers.compress.rtn import require_finite
from workers.formats.codes import Float8Codes
from workers.kernels.weights import spread_tiles

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantize(weight: Tensor, has_dynamic_activations: bool, tile: int | None = None) -> Float8Codes:
    """values = E4M3(w / scale), scale = max|w| / 448 over a row or a tile x tile square, fp32; 1 where all are zero.

    weight: (N, K). Scales are (N, 1), or (ceil(N / tile), ceil(K / tile)). Raises WorkerError (variant_corrupt) for NaN
    or infinity.
    """
    require_finite(weight)
    exact = weight.to(torch.float32)
    absmax = exact.abs().amax(dim=1, keepdim=True) if tile is None else _tile_absmax(exact, tile)
    scale = (absmax / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.where(absmax == 0, torch.ones_like(scale), scale)
    spread = spread_tiles(scale, tile or 0, exact.shape)
    # The cast to E4M3 gives NaN beyond 448, and fp32 division may land one step beyond.
    values = (exact / spread).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return Float8Codes(values=values, scale=scale, tile=tile, has_dynamic_activations=has_dynamic_activations)


def _tile_absmax(weight: Tensor, tile: int) -> Tensor:
    """weight: (N, K), fp32. Returns (ceil(N / tile), ceil(K / tile))."""
    rows, columns = (-(-size // tile) for size in weight.shape)
    padded = functional.pad(weight.abs(), (0, columns * tile - weight.shape[1], 0, rows * tile - weight.shape[0]))
    return padded.reshape(rows, tile, columns, tile).amax(dim=(1, 3))
