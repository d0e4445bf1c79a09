"""compressed-tensors' int-quantized and float-quantized: weights as an array of int8 or E4M3, and their scales."""

import torch
from torch import Tensor

from workers.checkpoint.layouts import float8
from workers.checkpoint.layouts.stored import FLOATS, StoredLinear
from workers.formats.codes import Codes, Float8Codes, GridCodes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme

SCALE_DTYPE = torch.bfloat16
_MIDDLE = 128


class IntQuantized:
    """weight (N, K) int8, weight_scale (N, G), when reading also weight_zero_point (N, G) int8."""

    name = "int-quantized"

    def holds(self, scheme: Scheme) -> bool:
        """Symmetric 8-bit grids of one group per row, activations as they are or int8."""
        is_symmetric = scheme.symmetric and not scheme.act_order
        return scheme.kind == "grid" and scheme.num_bits == 8 and scheme.group_size == -1 and is_symmetric

    def reads(self, scheme: Scheme) -> bool:
        """Every grid: codes of fewer bits lie in bytes too."""
        return scheme.kind == "grid" and scheme.num_bits <= 8

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The two tensors."""
        return {
            "weight": TensorLayout(dtype=torch.int8, shape=(out_features, in_features)),
            "weight_scale": TensorLayout(dtype=SCALE_DTYPE, shape=(out_features, 1)),
        }

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: a symmetric 8-bit grid of one group per row."""
        assert isinstance(codes, GridCodes)
        return {"weight": codes.signed(), "weight_scale": codes.scale.to(SCALE_DTYPE)}

    def decode(self, held: StoredLinear, scheme: Scheme, out_features: int, in_features: int) -> GridCodes:
        """An 8-bit grid, whatever the number of bits that are used of it."""
        groups = scheme.num_groups(in_features)
        if in_features % groups:
            raise held.corrupt(f"has {groups} groups, which do not divide its {in_features} columns")
        weight = held.take("weight", (out_features, in_features), {torch.int8})
        scale = held.take_per_row("weight_scale", out_features, groups, FLOATS)
        zero = torch.full_like(scale, _MIDDLE, dtype=torch.uint8)
        if not scheme.symmetric:
            zero = _unsigned(held.take_per_row("weight_zero_point", out_features, groups, {torch.int8}))
        return GridCodes(
            num_bits=8, codes=_unsigned(weight), scale=scale, zero=zero, activation_bits=scheme.activation_bits
        )


class FloatQuantized:
    """weight (N, K) float8_e4m3fn, weight_scale fp32: (N, 1), or (ceil(N / tile), ceil(K / tile))."""

    name = "float-quantized"

    def holds(self, scheme: Scheme) -> bool:
        """8-bit floats with scales per row or tile, activations as they are or rounded alike."""
        return scheme.kind == "float8"

    def reads(self, scheme: Scheme) -> bool:
        """The same."""
        return scheme.kind == "float8" and scheme.num_bits == 8 and scheme.symmetric

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The two tensors; tiles may be cut off at the edges."""
        return float8.plan(scheme, "weight_scale", out_features, in_features)

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: 8-bit floats."""
        assert isinstance(codes, Float8Codes)
        return float8.encode(codes, "weight_scale")

    def decode(self, held: StoredLinear, scheme: Scheme, out_features: int, in_features: int) -> Float8Codes:
        """8-bit floats."""
        return float8.decode(held, scheme, "weight_scale", out_features, in_features)


def _unsigned(signed: Tensor) -> Tensor:
    return (signed.to(torch.int16) + _MIDDLE).to(torch.uint8)
