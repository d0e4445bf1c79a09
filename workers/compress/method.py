"""What a compression method is, and the table of all. A new method is one module and one line here."""

from typing import Protocol

from torch import Tensor

from workers.compress.rtn import RoundToNearest
from workers.formats.linear import Format
from workers.formats.table import FORMATS
from workers.protocol.errors import WorkerError, WorkerErrorCode


class Method(Protocol):
    """Chooses the stored numbers of one linear's weight. The same weight always gives the same numbers."""

    @property
    def format(self) -> str:
        """Name of the format it writes, a key of FORMATS."""
        ...

    def compress(self, weight: Tensor) -> dict[str, Tensor]:
        """weight: (out_features, in_features). Returns the format's tensors by the last part of their names."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> Tensor:
        """The weight that `compress`'s tensors stand for, fp32."""
        ...


METHODS: dict[str, Method] = {"int8": RoundToNearest(format="int8", num_bits=8)}


def find_method(name: str) -> tuple[Method, Format]:
    """The method and its format. Raises WorkerError (invalid_request) with the names that exist."""
    if name not in METHODS:
        raise WorkerError(
            WorkerErrorCode.INVALID_REQUEST, f"method {name!r} is unknown; methods are {', '.join(sorted(METHODS))}"
        )
    method = METHODS[name]
    return method, FORMATS[method.format]
