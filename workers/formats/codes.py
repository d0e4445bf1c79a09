"""What a compression method chooses for one linear's weight, whatever the files or a kernel look like.

Methods make codes, layouts (workers/checkpoint) write them into files and read them back, and `build_linear`
(workers/formats) turns them into a layer that multiplies. `dequantize` of each kind is its definition.

Shapes: N = out_features, K = in_features, G = groups of input columns per row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.formats.scheme import grid_format
from workers.kernels import weights


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCodes:
    """A uniform grid: w[n, k] = scale[n, g] * (codes[n, k] - zero[n, g]) with g the group of column k.

    codes: (N, K), uint8, 0 .. 2**num_bits - 1. scale: (N, G), floating point. zero: (N, G), uint8; a symmetric grid
    has 2**(num_bits - 1) everywhere. group_index: (K,), int32, the group of each column where act-order has mixed them;
    None means k // (K / G). activation_bits: None keeps activations as they are; 8 rounds each token's activations to
    symmetric int8 by its own absmax before the product (W8A8).
    """

    num_bits: int
    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_index: Tensor | None = None
    activation_bits: int | None = None

    @property
    def format(self) -> str:
        """int4, for instance, or w8a8."""
        return grid_format(self.num_bits, self.activation_bits)

    @property
    def group_size(self) -> int:
        """Input columns per group; in_features where a row is one group."""
        return int(self.codes.shape[1] // self.scale.shape[1])

    @property
    def is_symmetric(self) -> bool:
        """True if every zero point is the middle of the grid."""
        return bool((self.zero == 2 ** (self.num_bits - 1)).all())

    def column_groups(self) -> Tensor:
        """(K,), int64: the group of every column."""
        if self.group_index is not None:
            return self.group_index.to(torch.int64)
        return torch.arange(self.codes.shape[1], device=self.codes.device) // self.group_size

    def signed(self) -> Tensor:
        """(N, K), int8: the codes of a symmetric grid counted from its middle."""
        middle: int = 2 ** (self.num_bits - 1)
        return (self.codes.to(torch.int16) - middle).to(torch.int8)

    def dequantize(self) -> Tensor:
        """(N, K), fp32."""
        return weights.grid_weight(self.codes, self.scale, self.zero, self.column_groups(), torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedAbsmax:
    """Absmax values that are quantized themselves (double quantization, QLoRA, arXiv:2305.14314, section 3).

    absmax[i] = code[codes[i]] * absmax[i // block_size] + offset. codes: uint8 (blocks,). code: (256,), fp32.
    absmax: (ceil(blocks / block_size),), fp32.
    """

    codes: Tensor
    code: Tensor
    absmax: Tensor
    offset: float
    block_size: int = 256

    def dequantize(self) -> Tensor:
        """(blocks,), fp32."""
        outer = self.absmax.repeat_interleave(self.block_size)[: self.codes.shape[0]]
        return self.code[self.codes.to(torch.int64)] * outer + self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookCodes:
    """Sixteen levels scaled by the absmax of each run of block_size weights, counted through the flattened (N, K).

    codes: (N, K), uint8, 0 .. 15. codebook: (16,), fp32, levels in [-1, 1]. absmax: (ceil(N * K / block_size),) fp32,
    or nested. kind: "nf4" or "fp4", which level table it is.
    """

    kind: str
    codes: Tensor
    codebook: Tensor
    absmax: Tensor | NestedAbsmax
    block_size: int

    @property
    def format(self) -> str:
        """nf4 or fp4."""
        return self.kind

    def block_absmax(self) -> Tensor:
        """(blocks,), fp32, nested values expanded."""
        return self.absmax.dequantize() if isinstance(self.absmax, NestedAbsmax) else self.absmax

    def dequantize(self) -> Tensor:
        """(N, K), fp32."""
        flat = self.codebook[self.codes.reshape(-1).to(torch.int64)]
        scale = self.block_absmax().repeat_interleave(self.block_size)[: flat.shape[0]]
        return (flat * scale).reshape(self.codes.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8Codes:
    """w = values * scale. values: (N, K), float8_e4m3fn. scale: fp32, (N, 1) per channel or one per tile,
    (ceil(N / tile), ceil(K / tile)). has_dynamic_activations: round each token's activations to E4M3 by its own absmax.
    """

    values: Tensor
    scale: Tensor
    tile: int | None = None
    has_dynamic_activations: bool = True

    @property
    def format(self) -> str:
        """fp8."""
        return "fp8"

    def dequantize(self) -> Tensor:
        """(N, K), fp32."""
        return weights.float8_weight(self.values, self.scale, self.tile or 0, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierCodes:
    """LLM.int8() (arXiv:2208.07339): w = codes * absmax / 127 per row; input columns in which any activation of the
    batch reaches `threshold` are multiplied in floating point, the others with activations rounded to int8 per token.

    codes: (N, K), int8. absmax: (N,), fp32. threshold: 0 takes no column out.
    """

    codes: Tensor
    absmax: Tensor
    threshold: float

    @property
    def format(self) -> str:
        """llm_int8."""
        return "llm_int8"

    def dequantize(self) -> Tensor:
        """(N, K), fp32."""
        return self.codes.to(torch.float32) * (self.absmax / 127).unsqueeze(1)


Codes = GridCodes | CodebookCodes | Float8Codes | OutlierCodes
