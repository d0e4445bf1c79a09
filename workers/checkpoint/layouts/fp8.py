"""FP8 files as DeepSeek-V3 brought them: E4M3 weights with one scale for each tile of 128 x 128.

The scale is called weight_scale_inv and multiplies all the same: w = weight * weight_scale_inv.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.layouts import float8
from workers.checkpoint.layouts.layout import SchemeGroup, only_scheme
from workers.checkpoint.layouts.stored import StoredLinear
from workers.formats.codes import Codes, Float8Codes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode

_SCALE = "weight_scale_inv"
_TILE = 128


class Fp8Layout:
    """weight (N, K) float8_e4m3fn, weight_scale_inv (ceil(N / tile), ceil(K / tile)) fp32."""

    name = "fp8"
    scale_dtype = float8.SCALE_DTYPE

    def accepts(self, scheme: Scheme) -> bool:
        """Tiles of 128, with activations rounded: the format has no word for activations as they are."""
        return scheme.kind == "float8" and scheme.group_size == _TILE and scheme.activation_bits is not None

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """Raises WorkerError (invalid_request) for tiles that are cut off at an edge.

        transformers spreads the scales evenly when it expands weights: 192 rows with two scales become 96 and 96, not
        128 and 64, without a word. A side of less than one tile is read alike by all.
        """
        tile = scheme.group_size
        for size in (out_features, in_features):
            if size > tile and size % tile:
                raise WorkerError(
                    WorkerErrorCode.INVALID_REQUEST,
                    f"tiles of {tile} do not divide {size}, and readers of layout 'fp8' disagree on what is left then; "
                    "skip this module or choose layout 'float-quantized'",
                )
        return float8.plan(scheme, _SCALE, out_features, in_features)

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: 8-bit floats in tiles."""
        assert isinstance(codes, Float8Codes)
        return float8.encode(codes, _SCALE)

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> Float8Codes:
        """Tiles, or one scale per row or tensor where the config names no tile.

        Files with activation scales that were fixed beforehand are read as if they were dynamic: each token is then
        rounded by its own absmax, which is finer than one scale for all.
        """
        held = StoredLinear(module, stored)
        scheme = Scheme(kind="float8", num_bits=8, group_size=_tile(config) or -1, activation_bits=8)
        name = "weight_scale" if _SCALE not in stored and "weight_scale" in stored else _SCALE
        codes = float8.decode(held, scheme, name, out_features, in_features)
        # GPTQModel's files: what the name says is true there.
        is_inverse = config.get("weight_scale_semantics") == "inverse"
        return replace(codes, scale=1 / codes.scale) if is_inverse else codes

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """As DeepSeek-V3 and transformers' FineGrainedFP8Config write it."""
        tile = only_scheme(self.name, groups).group_size
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [tile, tile],
            "modules_to_not_convert": ignore,
        }

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """FP8 in square tiles or without; not with experts in four bits."""
        is_fp8 = quantization_config.get("quant_method") == "fp8" and quantization_config.get("fmt") in (None, "e4m3")
        has_fp8_experts = quantization_config.get("expert_dtype") in (None, "fp8")
        return is_fp8 and has_fp8_experts and _tile(quantization_config) is not None

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True with an E4M3 weight: without a scale it is no plain weight either."""
        return "weight" in stored and stored["weight"].dtype is torch.float8_e4m3fn


def _tile(config: Mapping[str, Any]) -> int | None:
    """Rows and columns of a tile; 0 where there are none, None where they are not square."""
    shape = config.get("weight_block_size")
    if shape is None:
        return 0
    is_square = isinstance(shape, list | tuple) and len(shape) == 2 and shape[0] == shape[1]
    return shape[0] if is_square and type(shape[0]) is int and shape[0] > 0 else None
