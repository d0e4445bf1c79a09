"""The matrices that stored weights stand for. N = out_features, K = in_features, G = groups of columns per row."""

import torch
from torch import Tensor

from workers.kernels import int4_layout


def int4_weight(packed: Tensor, scale_and_offset: Tensor, out_features: int, dtype: torch.dtype) -> Tensor:
    """w = (q - 8) * s + o, (N, K) in `dtype`. packed: see int4_layout. scale_and_offset: (G, padded N, 2)."""
    codes = int4_layout.unpack(packed)[:out_features]
    scale, offset = scale_and_offset[:, :out_features].to(dtype).unbind(-1)
    grouped = (codes.to(dtype) - int4_layout.CODE_SHIFT).reshape(out_features, scale.shape[0], -1)
    return (grouped * scale.T.unsqueeze(-1) + offset.T.unsqueeze(-1)).reshape(codes.shape)


def grid_weight(codes: Tensor, scale: Tensor, zero: Tensor, group_index: Tensor | None, dtype: torch.dtype) -> Tensor:
    """w = (q - z) * s, (N, K) in `dtype`. codes: (N, K), uint8. scale, zero: (N, G).

    group_index: (K,), the group of each column; None: G equal runs of columns.
    """
    if group_index is not None:
        return (codes.to(dtype) - zero[:, group_index].to(dtype)) * scale[:, group_index].to(dtype)
    grouped = codes.to(dtype).reshape(*scale.shape, -1)
    return ((grouped - zero.to(dtype).unsqueeze(-1)) * scale.to(dtype).unsqueeze(-1)).reshape(codes.shape)


def codebook_weight(
    packed: Tensor, codebook: Tensor, absmax: Tensor, block_size: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """w = codebook[q] * absmax[block], (N, K) in `dtype`; blocks run through the flattened matrix.

    packed: (ceil(N * K / 2),), uint8, two codes a byte, the first in the high half. codebook: (16,). absmax: (blocks,).
    """
    num_weights = shape[0] * shape[1]
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1)[:num_weights]
    scale = absmax.to(dtype).repeat_interleave(block_size)[:num_weights]
    return (codebook.to(dtype)[codes.to(torch.int64)] * scale).reshape(shape)


def float8_weight(values: Tensor, scale: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """w = v * s, (N, K) in `dtype`. values: (N, K), float8_e4m3fn. scale: (N, 1), or one per tile x tile weights.

    tile: 0 for one scale per row.
    """
    return values.to(dtype) * spread_tiles(scale, tile, values.shape).to(dtype)


def spread_tiles(scale: Tensor, tile: int, shape: torch.Size) -> Tensor:
    """One scale per weight where scales are per tile; the (N, 1) of row scales as they are."""
    if not tile:
        return scale
    return scale.repeat_interleave(tile, 0)[: shape[0]].repeat_interleave(tile, 1)[:, : shape[1]]
