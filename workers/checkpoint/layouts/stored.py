"""The tensors of one module as a file holds them. Files of others are checked before torch would fail on them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.protocol.errors import WorkerError, WorkerErrorCode

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
INTS = frozenset({torch.int32, torch.int64})

# None stands for any length.
Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class StoredLinear:
    """module: its stored name, for messages. tensors: by what `split_name` leaves of their names."""

    module: str
    tensors: Mapping[str, Tensor]

    def take(self, name: str, shape: Shape, dtypes: Collection[torch.dtype]) -> Tensor:
        """One tensor. Raises WorkerError (variant_corrupt) if it is missing or of another shape or dtype."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.corrupt(f"lacks {name!r}")
        fits = len(shape) == tensor.dim() and all(
            length in (None, actual) for length, actual in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            expected = " x ".join("?" if length is None else str(length) for length in shape)
            raise self.corrupt(f"has {name!r} of shape {_text(tensor)}, which must be {expected or 'a single number'}")
        if tensor.dtype not in dtypes:
            allowed = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise self.corrupt(f"has {name!r} in {str(tensor.dtype).removeprefix('torch.')}, which must be {allowed}")
        return tensor

    def take_per_row(self, name: str, rows: int, groups: int, dtypes: Collection[torch.dtype]) -> Tensor:
        """(rows, groups): stored so, or, where a row is one group, as one number per row or one for all."""
        tensor = self.tensors.get(name)
        if tensor is not None and groups == 1:
            if tensor.numel() == 1:
                return self.take(name, (1,) * tensor.dim(), dtypes).reshape(1, 1).expand(rows, 1).contiguous()
            if tensor.dim() == 1:
                return self.take(name, (rows,), dtypes).unsqueeze(1)
        return self.take(name, (rows, groups), dtypes)

    def corrupt(self, problem: str) -> WorkerError:
        """An error about this module."""
        return WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"{self.module} {problem}; fetch the checkpoint again")


def group_index(held: StoredLinear, name: str, columns: int, groups: int) -> Tensor | None:
    """(columns,), int32: the group of each column as the file names it; None where groups are equal runs of columns.

    Raises WorkerError (variant_corrupt) for groups that are not there, or without an index if groups are unequal.
    """
    if groups == 0 or (name not in held.tensors and columns % groups):
        raise held.corrupt(f"has {groups} groups, which do not divide its {columns} columns")
    if name not in held.tensors:
        return None
    index = held.take(name, (columns,), INTS).to(torch.int32)
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise held.corrupt(f"has columns in groups {int(index.min())} to {int(index.max())} of {groups}")
    runs = torch.arange(columns, dtype=torch.int32, device=index.device) // max(1, columns // groups)
    return None if columns % groups == 0 and torch.equal(index, runs) else index


def _text(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"
