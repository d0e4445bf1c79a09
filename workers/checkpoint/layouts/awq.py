"""AWQ's gemm files: 4-bit codes packed along the outputs, the eight of a word in the order of its CUDA kernel."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.layouts.layout import SchemeGroup, only_scheme
from workers.checkpoint.layouts.packing import fills_words, pack, packed_length, unpack
from workers.checkpoint.layouts.stored import FLOATS, StoredLinear
from workers.formats.codes import Codes, GridCodes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS = 4


class AwqLayout:
    """qweight (K, N / 8), qzeros (G, N / 8), scales (G, N) fp16."""

    name = "awq"
    scale_dtype = torch.float16

    def accepts(self, scheme: Scheme) -> bool:
        """4-bit grids in the columns' own order with activations as they are."""
        is_plain = not scheme.act_order and scheme.activation_bits is None
        return scheme.kind == "grid" and scheme.num_bits == _BITS and is_plain

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The three tensors. Raises WorkerError (invalid_request) if 8 does not divide N."""
        groups, words = scheme.num_groups(in_features), packed_length(out_features, _BITS)
        return {
            "qweight": TensorLayout(dtype=torch.int32, shape=(in_features, words)),
            "qzeros": TensorLayout(dtype=torch.int32, shape=(groups, words)),
            "scales": TensorLayout(dtype=torch.float16, shape=(groups, out_features)),
        }

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: a 4-bit grid without a group index."""
        assert isinstance(codes, GridCodes)
        assert codes.group_index is None
        return {
            "qweight": pack(_reorder(codes.codes.T, _ORDER), _BITS),
            "qzeros": pack(_reorder(codes.zero.T, _ORDER), _BITS),
            "scales": codes.scale.to(torch.float16).T.contiguous(),
        }

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> GridCodes:
        """A 4-bit grid."""
        held = StoredLinear(module, stored)
        if not fills_words(out_features, _BITS):
            raise held.corrupt(f"has {out_features} outputs, which do not fill words of {_BITS} bits")
        words = packed_length(out_features, _BITS)
        scale = held.take("scales", (None, out_features), FLOATS).T.contiguous()
        num_groups = scale.shape[1]
        if num_groups == 0 or in_features % num_groups:
            raise held.corrupt(f"has {num_groups} groups, which do not divide its {in_features} columns")
        packed = {"qweight": in_features, "qzeros": num_groups}
        inverse = tuple(_ORDER.index(index) for index in range(len(_ORDER)))
        codes, zero = (
            _reorder(unpack(held.take(name, (rows, words), {torch.int32}), _BITS), inverse)
            for name, rows in packed.items()
        )
        return GridCodes(num_bits=_BITS, codes=codes.T.contiguous(), scale=scale, zero=zero.T.contiguous())

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """As AutoAWQ writes it."""
        scheme = only_scheme(self.name, groups)
        return {
            "quant_method": "awq",
            "bits": _BITS,
            "group_size": scheme.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ignore,
        }

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """AWQ of version gemm with 4 bits."""
        version = str(quantization_config.get("version") or "gemm").lower()
        is_awq = quantization_config.get("quant_method") == "awq" and version == "gemm"
        return is_awq and (quantization_config.get("bits") or quantization_config.get("w_bit")) == _BITS

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True with qweight, qzeros and scales."""
        return {"qweight", "qzeros", "scales"} <= stored.keys()


def _reorder(values: Tensor, order: tuple[int, ...]) -> Tensor:
    """values: (..., C). Position i of every eight takes column order[i]."""
    eights = values.reshape(*values.shape[:-1], -1, len(order))
    return torch.stack([eights[..., index] for index in order], dim=-1).flatten(-2)
