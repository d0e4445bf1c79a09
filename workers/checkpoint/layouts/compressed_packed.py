"""compressed-tensors' pack-quantized: rows of codes as one stream of bits each, zero points as streams down columns."""

import torch
from torch import Tensor

from workers.checkpoint.layouts.packing import pack_padded, padded_length, unpack_padded, unpack_whole
from workers.checkpoint.layouts.stored import FLOATS, INTS, StoredLinear, group_index
from workers.formats.codes import Codes, GridCodes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode

SCALE_DTYPE = torch.bfloat16
_BITS = (2, 3, 4, 8)


class PackQuantized:
    """weight_packed (N, ceil(K * b / 32)) int32, weight_scale (N, G), weight_shape (2,); weight_zero_point
    (ceil(N * b / 32), G) int32 where the grid is asymmetric.

    The library's codes are signed and stored with 2**(b - 1) added, which makes them ours.
    """

    name = "pack-quantized"

    def holds(self, scheme: Scheme) -> bool:
        """Grids of 2, 3, 4 or 8 bits in the columns' own order with activations as they are."""
        is_plain = not scheme.act_order and scheme.activation_bits is None
        return scheme.kind == "grid" and scheme.num_bits in _BITS and is_plain

    def reads(self, scheme: Scheme) -> bool:
        """Every grid."""
        return scheme.kind == "grid" and 2 <= scheme.num_bits <= 8

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """Raises WorkerError (invalid_request) if the groups do not divide K."""
        if scheme.group_size > 0 and in_features % scheme.group_size:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"groups of {scheme.group_size} do not divide {in_features} input columns; choose a divisor or -1",
            )
        groups, bits = scheme.num_groups(in_features), scheme.num_bits
        tensors = {
            "weight_packed": TensorLayout(dtype=torch.int32, shape=(out_features, padded_length(in_features, bits))),
            "weight_scale": TensorLayout(dtype=SCALE_DTYPE, shape=(out_features, groups)),
            "weight_shape": TensorLayout(dtype=torch.int64, shape=(2,)),
        }
        if not scheme.symmetric:
            words = padded_length(out_features, bits)
            tensors["weight_zero_point"] = TensorLayout(dtype=torch.int32, shape=(words, groups))
        return tensors

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """codes: a grid without a group index."""
        assert isinstance(codes, GridCodes)
        assert codes.group_index is None
        tensors = {
            "weight_packed": pack_padded(codes.codes, codes.num_bits),
            "weight_scale": codes.scale.to(SCALE_DTYPE),
            "weight_shape": torch.tensor(codes.codes.shape),
        }
        if not scheme.symmetric:
            tensors["weight_zero_point"] = pack_padded(codes.zero.T, codes.num_bits).T.contiguous()
        return tensors

    def decode(self, held: StoredLinear, scheme: Scheme, out_features: int, in_features: int) -> GridCodes:
        """A grid; the group index is kept only where act-order has mixed the columns."""
        if "weight_shape" in held.tensors:
            shape = held.take("weight_shape", (2,), INTS).tolist()
            if shape != [out_features, in_features]:
                raise held.corrupt(f"is stored as {shape}, the model has {[out_features, in_features]}")
        bits, groups = scheme.num_bits, scheme.num_groups(in_features)
        index = None
        # -1 in the index: the library made a place for one and never filled it.
        if "weight_g_idx" in held.tensors and -1 not in held.tensors["weight_g_idx"]:
            index = group_index(held, "weight_g_idx", in_features, groups)
        elif in_features % groups:
            raise held.corrupt(f"has {groups} groups, which do not divide its {in_features} columns")
        return GridCodes(
            num_bits=bits,
            codes=_unpack(held, "weight_packed", bits, out_features, in_features),
            scale=held.take_per_row("weight_scale", out_features, groups, FLOATS),
            zero=_zero(held, scheme, out_features, groups),
            group_index=index,
            activation_bits=scheme.activation_bits,
        )


def _zero(held: StoredLinear, scheme: Scheme, rows: int, groups: int) -> Tensor:
    """(rows, groups), uint8."""
    name = "weight_zero_point"
    middle: int = 2 ** (scheme.num_bits - 1)
    if scheme.symmetric:
        return torch.full((rows, groups), middle, dtype=torch.uint8)
    stored = held.tensors.get(name)
    # Early versions packed the codes only, and one zero point per tensor never is.
    if stored is not None and stored.dtype is torch.int8:
        signed = held.take_per_row(name, rows, groups, {torch.int8})
        return (signed.to(torch.int16) + middle).to(torch.uint8)
    return _unpack(held, name, scheme.num_bits, groups, rows, is_transposed=True).T.contiguous()


def _unpack(held: StoredLinear, name: str, bits: int, rows: int, length: int, *, is_transposed: bool = False) -> Tensor:
    """(rows, length), uint8, from `rows` streams.

    Earlier versions of the library put 32 // bits whole values into a word. That differs for 3, 5, 6 and 7 bits and
    shows in the number of words, but for rows of less than 21 values.
    """
    dense, whole = padded_length(length, bits), -(-length // (32 // bits))
    stored = held.tensors.get(name)
    whole_shape = (whole, rows) if is_transposed else (rows, whole)
    is_whole = dense != whole and stored is not None and tuple(stored.shape) == whole_shape
    words = whole if is_whole else dense
    packed = held.take(name, (words, rows) if is_transposed else (rows, words), {torch.int32})
    streams = packed.T if is_transposed else packed
    return unpack_whole(streams, bits, length) if is_whole else unpack_padded(streams, bits, length)
