"""Every layout on disk by name. A new layout is one module and one line here."""

from collections.abc import Mapping
from typing import Any

from workers.checkpoint.layouts.awq import AwqLayout
from workers.checkpoint.layouts.gptq import GptqLayout
from workers.checkpoint.layouts.layout import Layout
from workers.protocol.errors import WorkerError, WorkerErrorCode

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (GptqLayout("gptq", zero_offset=1), GptqLayout("gptq_v2", zero_offset=0), AwqLayout())
}


def recognize(quantization_config: Mapping[str, Any]) -> Layout:
    """The layout of a compressed checkpoint. Raises WorkerError (unsupported_model) if slimserve cannot read it."""
    for layout in LAYOUTS.values():
        if layout.matches(quantization_config):
            return layout
    raise WorkerError(
        WorkerErrorCode.UNSUPPORTED_MODEL,
        f"the checkpoint is compressed with quant_method {quantization_config.get('quant_method')!r}, bits "
        f"{quantization_config.get('bits')!r}; layouts are {', '.join(sorted(LAYOUTS))}: load the uncompressed model "
        "and quantize it here",
    )
