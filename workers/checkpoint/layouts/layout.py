"""What a layout on disk is: codes become the tensors of a file format, and those become codes again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.formats.codes import Codes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode

_NESTED_NAME = re.compile(r"(.+?)\.(weight\..+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeGroup:
    """The modules of one checkpoint that share a scheme, by their stored names (without `.weight`)."""

    scheme: Scheme
    modules: Sequence[str]


class Layout(Protocol):
    """One file format of compressed linears. Tensors are named by what `split_name` leaves of their names."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def scale_dtype(self) -> torch.dtype:
        """What the scales of grids are stored in; methods round weights against scales of this dtype."""
        ...

    def accepts(self, scheme: Scheme) -> bool:
        """Whether the format can store such codes."""
        ...

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The tensors in the place of `weight`, before any number is known.

        Raises WorkerError (invalid_request) for a shape that the format has no room for.
        """
        ...

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """Exactly the tensors that `plan` names for this scheme."""
        ...

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> Codes:
        """The codes of one module's stored tensors. module: its stored name. config: the quantization_config.

        Raises WorkerError (variant_corrupt) for tensors that contradict each other or the shape.
        """
        ...

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """What config.json says. groups: the first is the main one. ignore: stored names of matrices that are left
        as they were.

        Raises WorkerError (invalid_request) if the format cannot say that modules have different schemes.
        """
        ...

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint that says this is in this format."""
        ...

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """Whether tensors of one module are a compressed linear."""
        ...


def split_name(tensor: str) -> tuple[str, str]:
    """Module and rest of a stored tensor's name: `a.b.qweight` is `a.b` and `qweight`, `a.weight.absmax` is `a` and
    `weight.absmax`.
    """
    if nested := _NESTED_NAME.fullmatch(tensor):
        return nested[1], nested[2]
    module, _, last = tensor.rpartition(".")
    return module, last


def only_scheme(layout: str, groups: Sequence[SchemeGroup]) -> Scheme:
    """The one scheme of a checkpoint. Raises WorkerError (invalid_request) if modules have different ones."""
    if len(groups) > 1:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST,
            f"layout {layout!r} stores all modules alike; overrides with other numbers need layout 'pack-quantized', "
            "'int-quantized' or 'float-quantized'",
        )
    return groups[0].scheme
