"""NF4 and FP4 as bitsandbytes encodes them: the nearest of sixteen levels after division by the block's absmax.

NF4's levels are quantiles of a normal distribution (QLoRA, arXiv:2305.14314); FP4's are a sign, two exponent bits and
one of mantissa, scaled to 1. Double quantization stores the absmax values in 8 bits, around their mean.
"""

from typing import Final

import torch
from torch import Tensor

from workers.compress.rtn import require_finite
from workers.formats.codes import CodebookCodes, NestedAbsmax

_NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# In units of 1 / 12, by code; codes 8 .. 15 are the negative ones.
_FP4_TWELFTHS: Final = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
LEVELS: Final = {
    "nf4": _NF4,
    "fp4": tuple(sign * level / 12 for sign in (1, -1) for level in _FP4_TWELFTHS),
}
_NESTED_BLOCK = 256
_CHUNK = 2**20
# bitsandbytes' CPU code looks 8-bit levels up by the value rounded to 16 bits; without it 1 code in 600 differs.
_LOOKUP_STEPS = 2**16 - 1


def quantize(weight: Tensor, kind: str, block_size: int, double_quant: bool) -> CodebookCodes:
    """weight: (N, K), floating point; blocks run on over the ends of rows and the last may be short. kind: nf4 or fp4.

    Raises WorkerError (variant_corrupt) for NaN or infinity.
    """
    require_finite(weight)
    codebook = torch.tensor(LEVELS[kind], dtype=torch.float32, device=weight.device)
    flat = weight.reshape(-1)
    # Whole blocks a chunk, because the scaled copy is fp32.
    chunks = torch.split(flat, _CHUNK // block_size * block_size)
    found = [_encode_blocks(chunk.to(torch.float32), codebook, block_size) for chunk in chunks]
    absmax = torch.cat([values for _, values in found])
    return CodebookCodes(
        kind=kind,
        codes=torch.cat([codes for codes, _ in found]).reshape(weight.shape),
        codebook=codebook,
        absmax=nest(absmax) if double_quant else absmax,
        block_size=block_size,
    )


def nest(absmax: Tensor) -> NestedAbsmax:
    """Store absmax values in 8 bits. absmax: (blocks,), fp32."""
    offset = absmax.mean()
    levels = dynamic_map().to(absmax.device)
    codes, outer = _encode_blocks(absmax - offset, levels, _NESTED_BLOCK, _LOOKUP_STEPS)
    return NestedAbsmax(codes=codes, code=levels, absmax=outer, offset=float(offset), block_size=_NESTED_BLOCK)


def dynamic_map() -> Tensor:
    """The 256 levels of 8-bit dynamic data types (arXiv:2110.02861, signed): seven decades, each with twice as many
    steps as the one below, both signs, and 0 and 1. Ascending, fp32.
    """
    positive: list[float] = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2
        positive += (10.0 ** (decade - 6) * middles).tolist()
    return torch.tensor(sorted([*(-level for level in positive), 0.0, *positive, 1.0]), dtype=torch.float32)


def _encode_blocks(
    flat: Tensor, levels: Tensor, block_size: int, lookup_steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (uint8, as flat) and each block's absmax, fp32. A block of zeros gets the code of level 0."""
    padding = -len(flat) % block_size
    blocks = torch.nn.functional.pad(flat, (0, padding)).reshape(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    inverse = torch.where(absmax == 0, torch.zeros_like(absmax), 1 / absmax)
    scaled = (blocks * inverse[:, None]).clamp_(-1, 1).reshape(-1)[: len(flat)]
    if lookup_steps is not None:
        scaled = torch.round((scaled + 1) * 0.5 * lookup_steps) / lookup_steps * 2 - 1
    ascending, codes = torch.sort(levels, stable=True)
    middles = (ascending[:-1] + ascending[1:]) / 2
    return codes[torch.bucketize(scaled, middles)].to(torch.uint8), absmax
