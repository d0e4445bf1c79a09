"""What a compression method is, and the table of all. A new method is one module and one line here."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from workers.compress.layerwise import CalibratedMethod
from workers.compress.rtn import RoundToNearest
from workers.formats.linear import Format
from workers.formats.table import FORMATS
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.recipe_names import method_of
from workers.protocol.recipes import Recipe


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


# Methods that look at activations, by their name on the wire: what makes one for a recipe, and the format it writes.
CALIBRATED: dict[str, tuple[Callable[[Recipe], CalibratedMethod], str]] = {}


def find_method(recipe: Recipe) -> tuple[Method, Format]:
    """The method and its format. Raises WorkerError (invalid_request) with the names that exist."""
    name = method_of(recipe)
    if name not in METHODS:
        raise _unknown(name)
    method = METHODS[name]
    return method, FORMATS[method.format]


def find_calibrated(recipe: Recipe) -> tuple[CalibratedMethod, Format]:
    """As `find_method`, for recipes that need calibration."""
    name = method_of(recipe)
    if name not in CALIBRATED:
        raise _unknown(name)
    make, format = CALIBRATED[name]
    return make(recipe), FORMATS[format]


def _unknown(name: str) -> WorkerError:
    known = ", ".join(sorted([*METHODS, *CALIBRATED]))
    return WorkerError(WorkerErrorCode.INVALID_REQUEST, f"method {name!r} is unknown; methods are {known}")
