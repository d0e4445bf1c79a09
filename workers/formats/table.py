"""Every compressed format by name. A new format is one module and one line here."""

from collections.abc import Mapping
from typing import Any

from workers.formats.int8 import Int8Format
from workers.formats.linear import Format
from workers.protocol.errors import WorkerError, WorkerErrorCode

FORMATS: dict[str, Format] = {format.name: format for format in (Int8Format(),)}


def recognize(quantization_config: Mapping[str, Any]) -> Format:
    """The format of a compressed checkpoint. Raises WorkerError (unsupported_model) if slimserve cannot read it."""
    for candidate in FORMATS.values():
        if candidate.matches(quantization_config):
            return candidate
    raise WorkerError(
        WorkerErrorCode.UNSUPPORTED_MODEL,
        f"the checkpoint is compressed with quant_method {quantization_config.get('quant_method')!r}, format "
        f"{quantization_config.get('format')!r}; slimserve reads plain safetensors and compressed-tensors "
        "'int-quantized' with 8-bit symmetric channel weights: load the uncompressed model and quantize it here",
    )
