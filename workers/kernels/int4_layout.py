"""The one internal layout of 4-bit weights on uniform grids, that of torch's int4 op on the CPU.

Rows (output channels) come in blocks of R, 64 with AVX-512 and 32 without. In a block the codes lie column by column:
byte d of column k holds row d in its low half and row d + R / 2 in its high half. One vector of bytes is thus one
column of many outputs, and a tile of (columns, R) can be read in one piece. The last block is filled up with zeros.
"""

import torch
from torch import Tensor

BLOCK_ROWS = 64
# The offset of the op's codes: it multiplies with (code - 8) * scale + offset.
CODE_SHIFT = 8


def pack(codes: Tensor, block_rows: int, *, has_columns_together: bool = False) -> Tensor:
    """codes: (N, K), uint8, 0 .. 15. Returns (ceil(N / R), K, R / 2), uint8, with R = block_rows.

    has_columns_together: a byte's neighbour in memory is that of the next column, as a GPU's tensor cores take them
    (`triton_int4`), and not of the next row. Shape and contents are the same.
    """
    num_rows, num_columns = codes.shape
    num_blocks = -(-num_rows // block_rows)
    padded = codes.new_zeros(num_blocks * block_rows, num_columns)
    padded[:num_rows] = codes
    low, high = padded.reshape(num_blocks, 2, block_rows // 2, num_columns).unbind(1)
    packed = (low | (high << 4)).transpose(1, 2)
    return packed if has_columns_together else packed.contiguous()


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: (blocks, K, R / 2) -> (blocks * R, K), uint8, rows that fill the last block included."""
    codes = torch.cat((packed & 15, packed >> 4), dim=-1)
    return codes.transpose(1, 2).reshape(-1, packed.shape[1])


def scale_and_offset(scale: Tensor, zero: Tensor, num_padded_rows: int, dtype: torch.dtype) -> Tensor:
    """s * (q - z) as s * (q - 8) + o, o = s * (8 - z). Symmetric 4-bit grids have z = 8 and o = 0.

    scale, zero: (N, G). Returns (G, num_padded_rows, 2) in `dtype`, zeros in the added rows.
    """
    result = torch.zeros(scale.shape[1], num_padded_rows, 2, dtype=dtype, device=scale.device)
    wide = scale.to(torch.float32)
    result[:, : scale.shape[0], 0] = wide.T.to(dtype)
    # from the rounded scale, so that both parts err together
    rounded = wide.to(dtype).to(torch.float32)
    result[:, : scale.shape[0], 1] = (rounded * (CODE_SHIFT - zero.to(torch.float32))).T.to(dtype)
    return result
