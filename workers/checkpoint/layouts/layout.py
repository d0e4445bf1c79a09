"""What a layout on disk is: codes become the tensors of a file format, and those become codes again."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from workers.formats.codes import Codes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme


class Layout(Protocol):
    """One file format of compressed linears. Tensors are named by the last part of their names."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    def accepts(self, scheme: Scheme) -> bool:
        """Whether the format can store such codes."""
        ...

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """The tensors in the place of `weight`, before any number is known.

        Raises WorkerError (invalid_request) for a shape that the format's words do not divide.
        """
        ...

    def encode(self, codes: Codes) -> dict[str, Tensor]:
        """Exactly the planned tensors. Raises WorkerError (invalid_request) for numbers that the format cannot hold."""
        ...

    def decode(
        self, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> Codes:
        """The codes of stored tensors. config: the checkpoint's quantization_config."""
        ...

    def quantization_config(self, scheme: Scheme, ignore: list[str]) -> dict[str, Any]:
        """What config.json says. ignore: linears that are left as they were."""
        ...

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """Whether a checkpoint that says this is in this format."""
        ...

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """Whether tensors of one module are a compressed linear."""
        ...
