"""bitsandbytes' description of one 4-bit weight, JSON in a tensor of bytes.

Its length must be known before the numbers in it are, so the one number that varies has a fixed width.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.layouts.stored import StoredLinear

PREFIX = "weight.quant_state.bitsandbytes__"
QUANT_TYPES = ("nf4", "fp4")
# What readers expand weights to. Codes do not know the model's dtype, and this is the usual one.
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantState:
    """quant_type: "nf4" or "fp4". block_size: weights per absmax. nested_block_size: absmax values per absmax of
    theirs, None where they are stored as they are. nested_offset: what is added to them.
    """

    quant_type: str
    block_size: int
    shape: tuple[int, int]
    nested_block_size: int | None = None
    nested_offset: float = 0.0

    @property
    def num_blocks(self) -> int:
        """Blocks of the flattened weight; the last may be short."""
        return -(-math.prod(self.shape) // self.block_size)

    @property
    def num_nested_blocks(self) -> int:
        """Blocks of absmax values, 0 without nesting."""
        return 0 if self.nested_block_size is None else -(-self.num_blocks // self.nested_block_size)

    def to_bytes(self) -> bytes:
        """The JSON; of one length for all offsets: a sign or space, 17 digits, a two-digit exponent as fp32 has it."""
        fields: dict[str, Any] = {
            "quant_type": self.quant_type, "blocksize": self.block_size, "dtype": DTYPE, "shape": list(self.shape),
        }  # fmt: skip
        if self.nested_block_size is None:
            return json.dumps(fields).encode()
        fields |= {"nested_blocksize": self.nested_block_size, "nested_dtype": "float32"}
        return f'{json.dumps(fields)[:-1]}, "nested_offset": {self.nested_offset: .16e}}}'.encode()

    def to_tensor(self) -> Tensor:
        """(bytes,), uint8."""
        return torch.tensor(list(self.to_bytes()), dtype=torch.uint8)

    @classmethod
    def read(cls, held: StoredLinear) -> "QuantState":
        """Raises WorkerError (variant_corrupt) for anything but the JSON that bitsandbytes writes."""
        names = [name for name in held.tensors if name.startswith(PREFIX)]
        if len(names) != 1:
            raise held.corrupt(f"has {len(names)} tensors named {PREFIX}*, which must be one")
        encoded = held.take(names[0], (None,), {torch.uint8})
        try:
            fields = json.loads(bytes(encoded.cpu().numpy()))
        except (ValueError, RecursionError) as error:
            raise held.corrupt(f"has no JSON in {names[0]!r}") from error
        state = cls._of(fields) if isinstance(fields, dict) else None
        if state is None:
            raise held.corrupt(f"has another JSON in {names[0]!r} than bitsandbytes writes")
        return state

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> "QuantState | None":
        shape: Any = fields.get("shape")
        offset = fields.get("nested_offset", 0.0)
        sizes = [fields.get("blocksize"), fields.get("nested_blocksize", 1)]
        is_known = fields.get("quant_type") in QUANT_TYPES
        is_shape = isinstance(shape, list) and len(shape) == 2 and all(type(size) is int for size in shape)
        are_sizes = all(type(size) is int and size > 0 for size in sizes)
        is_number = type(offset) in (int, float) and math.isfinite(offset)
        if not (is_known and is_shape and are_sizes and is_number):
            return None
        return cls(
            quant_type=fields["quant_type"],
            block_size=fields["blocksize"],
            shape=(shape[0], shape[1]),
            nested_block_size=fields.get("nested_blocksize"),
            nested_offset=float(offset),
        )
