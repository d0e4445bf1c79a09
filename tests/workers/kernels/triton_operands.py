"""Operands for the Triton kernels and the weights that they stand for, in fp64 and without code of the project's."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.workers.kernels.bounds import random, random_codes
from workers.kernels import int4_layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """What an op takes between x and bias, what it takes after them, and the weight: (N, K), fp64.

    unit_in: by how much of itself an implementation in x's dtype may have a weight wrong.
    """

    before: tuple[Any, ...]
    after: tuple[Any, ...]
    weight: Tensor
    unit_in: float = 0.0

    def arguments(self, x: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        """All arguments of the op, on x's device."""
        moved = (part.to(x.device) if isinstance(part, Tensor) else part for part in self.before)
        return x, *moved, bias, *self.after


def int4(n: int, k: int, dtype: torch.dtype, *, group_size: int = 64, has_columns_together: bool = True) -> Operands:
    """Asymmetric groups with scales and offsets that every dtype holds."""
    codes = random_codes(16, n, k, seed=n + k)
    # powers of two: offsets of up to 4 steps are exact too
    scale = 2.0 ** torch.randint(-8, -5, (n, k // group_size), generator=torch.Generator().manual_seed(1))
    zero = random_codes(9, n, k // group_size, seed=2) + 4
    packed = int4_layout.pack(codes, int4_layout.BLOCK_ROWS, has_columns_together=has_columns_together)
    groups = int4_layout.scale_and_offset(scale, zero, packed.shape[0] * int4_layout.BLOCK_ROWS, dtype)
    wide = [part.double().repeat_interleave(group_size, dim=1) for part in (scale, zero)]
    return Operands(before=(packed, groups), after=(n,), weight=(codes.double() - wide[1]) * wide[0])


def codebook(n: int, k: int, dtype: torch.dtype, *, block_size: int = 64) -> Operands:
    """Sixteen levels of both signs, in no order; they are rounded to x's dtype."""
    codes = random_codes(16, n * k, seed=n + k)
    levels = random(16, seed=3)
    absmax = random(n * k // block_size, seed=4).abs() + 0.1
    weight = levels.double()[codes.long()] * absmax.double().repeat_interleave(block_size)
    packed = codes[0::2] * 16 + codes[1::2]
    unit = torch.finfo(dtype).eps / 2
    return Operands(
        before=(packed, levels, absmax), after=(block_size, n), weight=weight.reshape(n, k), unit_in=1.01 * unit
    )


def int8(n: int, k: int, dtype: torch.dtype) -> Operands:
    """All of int8, a scale per row."""
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(n + k))
    scale = random(n, 1, seed=5).abs() * 0.01 + 1e-3
    return Operands(before=(weight, scale), after=(), weight=weight.double() * scale.double())


def float8(n: int, k: int, dtype: torch.dtype, *, tile: int = 0) -> Operands:
    """E4M3 numbers, denormal ones too, and a scale per row or per tile."""
    values = (random(n, k, seed=6) * 2.0 ** torch.arange(-9, 7)[torch.arange(k) % 16]).to(torch.float8_e4m3fn)
    shape = (-(-n // tile), -(-k // tile)) if tile else (n, 1)
    scale = random(*shape, seed=7).abs() * 0.01 + 1e-3
    wide = scale.double()
    if tile:
        wide = wide[torch.arange(n) // tile][:, torch.arange(k) // tile]
    return Operands(before=(values, scale), after=(tile, False), weight=values.double() * wide)
