"""The CPU's products with weights that no op of torch reads directly: grids, codebooks and 8-bit floats.

Each call expands every weight, a tile at a time. Correct, and for one row two to four times slower than a plain product
of the same shape: what is saved is memory. Activations keep the precision that they come with.
"""

import functools
import math

import torch
from torch import Tensor

from workers.kernels import rounding, weights
from workers.kernels.tiles import finish, rows_per_tile, tiled_product

# E4M3 has 4 bits of exponent with a bias of 7, bf16 8 bits with a bias of 127.
_FLOAT8_EXPONENT_GAP = 2.0 ** (127 - 7)


def grid_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_index: Tensor | None,
    bias: Tensor | None,
    activation_bits: int,
) -> Tensor:
    """`reference.grid_linear` for CPU tensors."""
    rows = x.reshape(-1, x.shape[-1])
    token_scale = None
    if activation_bits:
        # integers up to 127 are exact in x's dtype, whichever it is
        token_codes, token_scale = rounding.round_to_int8(rows)
        rows = token_codes.to(x.dtype)

    def expand(start: int, end: int) -> Tensor:
        part = slice(start, end)
        return weights.grid_weight(codes[part], scale[part], zero[part], group_index, torch.float32)

    product = tiled_product(rows, codes.shape[0], rows_per_tile(codes.shape[1]), expand)
    return finish(product if token_scale is None else product * token_scale, x, bias)


def codebook_linear(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> Tensor:
    """`reference.codebook_linear` for CPU tensors: each byte looks up the pair of levels that it stands for."""
    rows = x.reshape(-1, x.shape[-1])
    num_columns = x.shape[-1]
    pairs = _level_pairs(codebook)

    def expand(start: int, end: int) -> Tensor:
        first, last = start * num_columns, end * num_columns
        # int32: index_select takes no bytes, and 64-bit indices are twice the traffic
        indices = packed[first // 2 : -(-last // 2)].to(torch.int32)
        levels = pairs.index_select(0, indices).view(torch.float32)[: last - first]
        scale = absmax[first // block_size : -(-last // block_size)]
        if (last - first) % block_size:
            levels.mul_(scale.repeat_interleave(block_size)[: last - first])
        else:
            levels.view(-1, block_size).mul_(scale.unsqueeze(1))
        return levels.view(end - start, num_columns)

    # A tile starts with a byte and with a block.
    run = math.lcm(2, block_size)
    tile_rows = rows_per_tile(num_columns, run // math.gcd(run, num_columns))
    return finish(tiled_product(rows, out_features, tile_rows, expand), x, bias)


def float8_linear(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> Tensor:
    """`reference.float8_linear` for CPU tensors. Every E4M3 number is exact in bf16, so is every product in fp32."""
    rows = x.reshape(-1, x.shape[-1])
    out_scale = scale.to(torch.float32).T if not tile else torch.ones(())
    if has_dynamic_activations:
        token_values, token_scale = rounding.round_to_float8(rows)
        rows = token_values.to(x.dtype)
        out_scale = out_scale * token_scale

    def expand(start: int, end: int) -> Tensor:
        wide = widen_float8(values[start:end])
        if tile:
            # a tile of rows starts with a tile of scales
            wide.mul_(weights.spread_tiles(scale[start // tile : -(-end // tile)], tile, wide.shape))
        return wide

    product = tiled_product(rows, values.shape[0], rows_per_tile(values.shape[1], max(1, tile)), expand)
    return finish(product * out_scale, x, bias)


def widen_float8(values: Tensor) -> Tensor:
    """values.to(fp32) for finite float8_e4m3fn, which torch does 6 to 10 times slower.

    Sign, exponent and fraction move to their places in a bf16; what its exponent then lacks is one exact product.
    """
    bits = values.view(torch.int8).to(torch.int16)
    # the sign has been spread over the high bits: keep one, and the seven others
    moved = bits.bitwise_left_shift_(4).bitwise_and_(~0x7FFF | 0x7F0)
    return moved.view(torch.bfloat16).to(torch.float32).mul_(_FLOAT8_EXPONENT_GAP)


@functools.lru_cache(maxsize=8)
def _cached_pairs(levels: tuple[float, ...]) -> Tensor:
    table = torch.tensor(levels, dtype=torch.float32)
    codes = torch.arange(256)
    # two fp32 in one fp64, so that one look-up fetches both
    return torch.stack((table[codes >> 4], table[codes & 15]), dim=-1).view(torch.float64).reshape(-1)


def _level_pairs(codebook: Tensor) -> Tensor:
    """(256,), fp64 that are pairs of fp32: the two levels behind each byte, the high half's first."""
    return _cached_pairs(tuple(codebook.tolist()))
