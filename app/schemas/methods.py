"""Methods of compression, as clients see them."""

from typing import Any, Literal

from msgspec import Struct


class MethodObject(Struct, frozen=True, kw_only=True):
    """A method for POST /v1/quantize. options: name -> JSON Schema, with its default. details: what they mean.

    needs_calibration: it looks at activations, so it takes `calibration`. layouts: file formats, the default one first;
    empty for plain files.
    """

    object: Literal["method"] = "method"
    method: str
    summary: str
    details: str
    needs_calibration: bool
    layouts: list[str]
    options: dict[str, Any]
