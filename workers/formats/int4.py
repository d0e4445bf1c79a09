"""2-, 3- and 4-bit grids in groups of columns: one layout in memory, whatever method made them or file held them.

A code takes four bits, also where the grid has fewer levels: there is one kernel, and only files are packed tighter.
"""

from dataclasses import replace

import torch
from torch import Tensor

from workers.formats import columns
from workers.formats.codes import GridCodes
from workers.formats.linear import QuantizedLinear, frozen
from workers.kernels import cpu_int4, int4_layout, ops, weights

_LARGEST_BITS = 4


class Int4Linear(QuantizedLinear):
    """y = x[columns] ((q - 8) * s + o)^T + b.

    packed: the codes q as `int4_layout` has them. scale_and_offset: (G, padded N, 2), in bf16 on the CPU, whose op
    wants it so (methods that round to a bf16 scale lose nothing), in the activations' dtype elsewhere. In fp32 the op
    is not used, and nothing is rounded. column_order: (K,), int64, or None.

    With zero points the offset o = s * (8 - z) is rounded too, so this is (q - z) * s but for 2**-8 |8 - z| s at most,
    a 37th of a step: no more than the op's own rounding of (q - 8) * s + o to bf16. On two variants of slimstory it
    moved the answers by 2e-6 nats per token, the op's rounding by 2e-4.
    """

    op = "int4_linear"

    def __init__(
        self,
        packed: Tensor,
        scale_and_offset: Tensor,
        column_order: Tensor | None,
        bias: Tensor | None,
        out_features: int,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, packed.shape[1]
        self.packed = frozen(packed)
        self.scale_and_offset = frozen(scale_and_offset)
        self.column_order = None if column_order is None else frozen(column_order)
        self.bias = None if bias is None else frozen(bias)

    @classmethod
    def accepts(cls, codes: GridCodes) -> bool:
        """True for up to 4 bits in equal groups of a multiple of 32 columns, activations as they are."""
        if codes.num_bits > _LARGEST_BITS or codes.activation_bits is not None:
            return False
        length = columns.equal_length(codes)
        return length is not None and length % min(cpu_int4.GROUP_SIZES) == 0

    @property
    def product_dtype(self) -> torch.dtype:
        """fp32 where the scales are too wide for the CPU's op."""
        return super().product_dtype if self._suits_op else torch.float32

    @property
    def kernel(self) -> str:
        """As for every layer; `ops.EMULATED` where the scales are too wide for the CPU's op."""
        return super().kernel if self._suits_op else ops.EMULATED

    @property
    def _suits_op(self) -> bool:
        return self.device.type != "cpu" or self.scale_and_offset.dtype is cpu_int4.SCALE_DTYPE

    @classmethod
    def from_codes(
        cls, codes: GridCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "Int4Linear":
        """The layer that multiplies with `codes`, which it accepts."""
        return cls._build(codes, bias, cpu_int4.SCALE_DTYPE if device.type == "cpu" else dtype, device)

    @classmethod
    def with_wide_scales(
        cls, codes: GridCodes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device
    ) -> "Int4Linear":
        """The same in fp32, slowly on the CPU. dtype: of the activations, no matter here."""
        return cls._build(codes, bias, torch.float32, device)

    @classmethod
    def _build(
        cls, codes: GridCodes, bias: Tensor | None, scale_dtype: torch.dtype, device: torch.device
    ) -> "Int4Linear":
        runs, order = columns.in_equal_runs(_centered(codes))
        on_cpu = device.type == "cpu"
        block_rows = (on_cpu and cpu_int4.block_rows()) or int4_layout.BLOCK_ROWS
        packed = int4_layout.pack(runs.codes, block_rows, has_columns_together=not on_cpu)
        # A group wider than the op takes becomes several with the same scale.
        size = max(size for size in cpu_int4.GROUP_SIZES if runs.group_size % size == 0)
        repeats = runs.group_size // size
        scale_and_offset = int4_layout.scale_and_offset(
            runs.scale.repeat_interleave(repeats, dim=1),
            runs.zero.repeat_interleave(repeats, dim=1),
            packed.shape[0] * block_rows,
            scale_dtype,
        )
        return cls(
            packed.to(device),
            scale_and_offset.to(device),
            None if order is None else order.to(device),
            bias,
            runs.codes.shape[0],
        )

    def dequantize(self) -> Tensor:
        """(q - 8) * s + o in fp32, columns where x has them."""
        weight = weights.int4_weight(self.packed, self.scale_and_offset, self.out_features, torch.float32)
        return columns.scattered(weight, self.column_order)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), floating point. Returns (..., N) in x's dtype."""
        ordered = columns.select(x, self.column_order)
        return ops.int4_linear(ordered, self.packed, self.scale_and_offset, self.bias, self.out_features)


def _centered(codes: GridCodes) -> GridCodes:
    """The same weights with codes moved up in their four bits so that every zero point is 8, where there is room.

    The op's offset is then 0; any other is rounded to bf16, which at 2 bits could cost a fiftieth of a step.
    """
    if codes.num_bits == _LARGEST_BITS:
        return codes
    shift = int4_layout.CODE_SHIFT - codes.zero
    return replace(
        codes,
        codes=codes.codes + shift[:, codes.column_groups()],
        zero=torch.full_like(codes.zero, int4_layout.CODE_SHIFT),
    )
