"""What becomes of each tensor of a base: copied, cast, rounded, or replaced by what a layer job has made.

Pieces are planned before any number is read, then written one by one, so memory holds one tensor.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from workers.checkpoint.headers import CheckpointHeaders, TensorHeader
from workers.checkpoint.layouts.layout import Layout
from workers.checkpoint.save import PlannedTensor
from workers.checkpoint.tensors import SAFETENSORS_DTYPES, TORCH_DTYPES, raw_chunks, read_tensor, tensor_bytes
from workers.compress.method import round_weight
from workers.compress.plan import CompressionPlan
from workers.formats.grid import relative_error

Chunks = Iterable[bytes | memoryview]
_CASTABLE = frozenset({"F64", "F32", "F16", "BF16"})


class Piece(Protocol):
    """One tensor of the base and what stands for it in the variant. unit: what progress calls it."""

    source: TensorHeader
    unit: str

    def planned(self) -> list[PlannedTensor]:
        """The variant's tensors in the order in which they are written."""
        ...

    def write(self) -> Iterator[tuple[str, Chunks]]:
        """(name, bytes) of each planned tensor."""
        ...

    @property
    def error(self) -> float | None:
        """Relative error of the weight, known once a compressed piece is written."""
        ...


@dataclass(slots=True, kw_only=True)
class Copied:
    """Bytes as they are. stand_ins: tensors that take the source's place; the source itself if there are none."""

    source: TensorHeader
    unit: str
    stand_ins: tuple[TensorHeader, ...] = ()
    error: float | None = None

    def planned(self) -> list[PlannedTensor]:
        """Dtypes and shapes as in the files that are copied from."""
        return [PlannedTensor(name=one.name, dtype=one.dtype, shape=one.shape) for one in self._taken()]

    def write(self) -> Iterator[tuple[str, Chunks]]:
        """Chunks of the files."""
        for one in self._taken():
            yield one.name, raw_chunks(one)

    def _taken(self) -> tuple[TensorHeader, ...]:
        return self.stand_ins or (self.source,)


@dataclass(slots=True, kw_only=True)
class Cast:
    """The same numbers, rounded to another floating-point type."""

    source: TensorHeader
    unit: str
    dtype: torch.dtype
    error: float | None = None

    def planned(self) -> list[PlannedTensor]:
        """One tensor of the new dtype."""
        name = SAFETENSORS_DTYPES[self.dtype]
        return [PlannedTensor(name=self.source.name, dtype=name, shape=self.source.shape)]

    def write(self) -> Iterator[tuple[str, Chunks]]:
        """Notes the relative error."""
        stored = read_tensor(self.source)
        cast = stored.to(self.dtype)
        self.error = relative_error(stored, cast.to(torch.float32))
        yield self.source.name, [tensor_bytes(cast)]


@dataclass(slots=True, kw_only=True)
class RoundedWeight:
    """A weight rounded by a method that looks at no data. unit: the module's name."""

    source: TensorHeader
    unit: str
    plan: CompressionPlan
    layout: Layout
    device: torch.device
    error: float | None = None

    def planned(self) -> list[PlannedTensor]:
        """What the layout plans."""
        shape, prefix = self.source.shape, self.plan.stored_name(self.unit)
        tensors = self.layout.plan(self.plan.schemes[self.unit], shape[0], shape[1])
        return [
            PlannedTensor(name=f"{prefix}.{last}", dtype=SAFETENSORS_DTYPES[one.dtype], shape=one.shape)
            for last, one in tensors.items()
        ]

    def write(self) -> Iterator[tuple[str, Chunks]]:
        """Rounds the weight and notes its error. Raises WorkerError (variant_corrupt) for NaN or infinity."""
        weight = read_tensor(self.source).to(self.device)
        codes = round_weight(self.plan.recipes[self.unit], weight, self.layout.scale_dtype)
        self.error = relative_error(weight, codes.dequantize())
        tensors = self.layout.encode(codes, self.plan.schemes[self.unit])
        for one in self.planned():
            last = one.name.removeprefix(self.plan.stored_name(self.unit) + ".")
            yield one.name, [tensor_bytes(tensors[last].cpu())]


def cast_pieces(headers: CheckpointHeaders, dtype: torch.dtype) -> list[Piece]:
    """Every floating tensor of another dtype is cast, the others are copied."""
    pieces: list[Piece] = []
    for name, tensor in headers.tensors.items():
        if tensor.dtype in _CASTABLE and TORCH_DTYPES[tensor.dtype] is not dtype:
            pieces.append(Cast(source=tensor, unit=name, dtype=dtype))
        else:
            pieces.append(Copied(source=tensor, unit=name))
    return pieces


def compressed_pieces(
    headers: CheckpointHeaders,
    plan: CompressionPlan,
    layout: Layout,
    device: torch.device,
    made: dict[str, TensorHeader],
) -> list[Piece]:
    """The base's tensors in their order, a tied head behind its embedding. made: what a layer job has made, by name."""
    by_module: dict[str, list[TensorHeader]] = {}
    for name, header in made.items():
        if name not in headers.tensors or name in plan.targets:
            by_module.setdefault(_owner(name, plan), []).append(header)
    pieces: list[Piece] = []
    for name, tensor in headers.tensors.items():
        module = plan.targets.get(name)
        if module is None:
            stand_in = (made[name],) if name in made else ()
            pieces.append(Copied(source=tensor, unit=name, stand_ins=stand_in))
        elif module in by_module:
            pieces.append(Copied(source=tensor, unit=module, stand_ins=tuple(by_module[module])))
        else:
            pieces.append(RoundedWeight(source=tensor, unit=module, plan=plan, layout=layout, device=device))
        if name == plan.tied_head:
            pieces.append(RoundedWeight(source=tensor, unit=plan.head, plan=plan, layout=layout, device=device))
    return pieces


def _owner(name: str, plan: CompressionPlan) -> str:
    """The compressed module that a made tensor belongs to."""
    stem = name
    while stem:
        stem = stem.rpartition(".")[0]
        if f"{stem}.weight" in plan.targets:
            return plan.targets[f"{stem}.weight"]
    raise ValueError(f"{name} belongs to no compressed module")
