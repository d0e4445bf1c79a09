"""E4M3 weights and their scales, per row or per square tile: what 'float-quantized' and 'fp8' files share."""

import torch
from torch import Tensor

from workers.checkpoint.layouts.stored import FLOATS, StoredLinear
from workers.formats.codes import Float8Codes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme

DTYPE = torch.float8_e4m3fn
# Scales are made in fp32, and readers take any floating-point type.
SCALE_DTYPE = torch.float32
# E8M0 is a power of two in one byte.
_SCALE_DTYPES = FLOATS | {torch.float8_e8m0fnu}


def scale_shape(scheme: Scheme, out_features: int, in_features: int) -> tuple[int, int]:
    """One per row, or one per tile of `group_size` rows and columns, those at the edges short."""
    if scheme.group_size == -1:
        return out_features, 1
    return -(-out_features // scheme.group_size), -(-in_features // scheme.group_size)


def plan(scheme: Scheme, scale_name: str, out_features: int, in_features: int) -> dict[str, TensorLayout]:
    """weight (N, K) and its scales in fp32."""
    return {
        "weight": TensorLayout(dtype=DTYPE, shape=(out_features, in_features)),
        scale_name: TensorLayout(dtype=SCALE_DTYPE, shape=scale_shape(scheme, out_features, in_features)),
    }


def encode(codes: Float8Codes, scale_name: str) -> dict[str, Tensor]:
    """The tensors of `plan`."""
    return {"weight": codes.values, scale_name: codes.scale.to(SCALE_DTYPE)}


def decode(held: StoredLinear, scheme: Scheme, scale_name: str, out_features: int, in_features: int) -> Float8Codes:
    """scheme: as the file's config says it; one scale for the whole tensor becomes the same scale in every row.

    Raises WorkerError (variant_corrupt) for tensors of other shapes or dtypes.
    """
    values = held.take("weight", (out_features, in_features), {DTYPE})
    if scheme.group_size == -1:
        scale = held.take_per_row(scale_name, out_features, 1, _SCALE_DTYPES)
    else:
        scale = held.take(scale_name, scale_shape(scheme, out_features, in_features), _SCALE_DTYPES)
    return Float8Codes(
        values=values,
        scale=scale.to(SCALE_DTYPE),
        tile=None if scheme.group_size == -1 else scheme.group_size,
        has_dynamic_activations=scheme.activation_bits is not None,
    )
