"""Every layout on disk by name. A new layout is one module and one line here."""

from collections.abc import Mapping
from typing import Any

from workers.checkpoint.layouts.awq import AwqLayout
from workers.checkpoint.layouts.bitsandbytes import BitsAndBytesLayout
from workers.checkpoint.layouts.compressed_tensors import CompressedTensorsLayout
from workers.checkpoint.layouts.fp8 import Fp8Layout
from workers.checkpoint.layouts.gptq import GptqLayout
from workers.checkpoint.layouts.layout import Layout
from workers.protocol.errors import WorkerError, WorkerErrorCode

_ALL: tuple[Layout, ...] = (
    GptqLayout("gptq", zero_offset=1),
    GptqLayout("gptq_v2", zero_offset=0),
    AwqLayout(),
    CompressedTensorsLayout("pack-quantized"),
    CompressedTensorsLayout("int-quantized"),
    CompressedTensorsLayout("float-quantized"),
    BitsAndBytesLayout(),
    Fp8Layout(),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
# What tells files of one quant_method apart, in the words of their configs.
_TELLING = (
    "bits", "w_bit", "checkpoint_format", "version", "format", "fmt", "weight_block_size", "dynamic", "expert_dtype",
    "sparsity_config", "transform_config",
)  # fmt: skip
_TELLING_OF_WEIGHTS = ("num_bits", "type", "strategy", "group_size", "block_structure")
_LONGEST = 500


def recognize(quantization_config: Mapping[str, Any]) -> Layout:
    """The layout of a compressed checkpoint. Raises WorkerError (unsupported_model) if slimserve cannot read it."""
    for layout in LAYOUTS.values():
        if layout.matches(quantization_config):
            return layout
    raise WorkerError(
        WorkerErrorCode.UNSUPPORTED_MODEL,
        f"the checkpoint is compressed with {_description(quantization_config)}; slimserve reads "
        f"{', '.join(sorted(LAYOUTS))}: load the uncompressed model and quantize it here",
    )


def _description(config: Mapping[str, Any]) -> str:
    """The config in a line: quant_method and what else it says that may be the reason."""
    said = [f"quant_method {config.get('quant_method')!r}"]
    said += [f"{name} {config[name]!r}" for name in _TELLING if config.get(name)]
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        for part in ("weights", "input_activations"):
            if isinstance(group, Mapping) and isinstance(group.get(part), Mapping):
                numbers = {name: group[part][name] for name in _TELLING_OF_WEIGHTS if group[part].get(name)}
                said.append(f"{part} {numbers!r}")
    text = ", ".join(dict.fromkeys(said))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
