"""compressed-tensors' files, whose modules may have different formats: one layout by the name of each.

A module's format follows from its scheme: the layout's own where that has room for it, else another that has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.checkpoint.layouts import compressed_groups, kept_modules
from workers.checkpoint.layouts.compressed_packed import PackQuantized
from workers.checkpoint.layouts.compressed_plain import FloatQuantized, IntQuantized
from workers.checkpoint.layouts.layout import SchemeGroup
from workers.checkpoint.layouts.stored import StoredLinear
from workers.formats.codes import Codes
from workers.formats.linear import TensorLayout
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode


class GroupFormat(Protocol):
    """One of the library's formats: which tensors lie in the place of `weight`."""

    @property
    def name(self) -> str:
        """As config.json says it."""
        ...

    def holds(self, scheme: Scheme) -> bool:
        """Whether such codes can be written."""
        ...

    def reads(self, scheme: Scheme) -> bool:
        """Whether files with such codes can be read."""
        ...

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """See `Layout.plan`."""
        ...

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """See `Layout.encode`."""
        ...

    def decode(self, held: StoredLinear, scheme: Scheme, out_features: int, in_features: int) -> Codes:
        """scheme: as the file's config says it. Raises WorkerError (variant_corrupt) as `Layout.decode`."""
        ...


_FORMATS: dict[str, GroupFormat] = {
    format.name: format for format in (IntQuantized(), PackQuantized(), FloatQuantized())
}


@dataclass(frozen=True, slots=True)
class CompressedTensorsLayout:
    """name: the format of the main scheme."""

    name: str
    scale_dtype: torch.dtype = torch.bfloat16

    def accepts(self, scheme: Scheme) -> bool:
        """Whatever one of the formats holds, because overrides may mix them; `quantization_config` asks for at least
        one group in the layout's own.
        """
        return any(format.holds(scheme) for format in _FORMATS.values())

    def plan(self, scheme: Scheme, out_features: int, in_features: int) -> dict[str, TensorLayout]:
        """As the scheme's format plans."""
        return self._format_of(scheme).plan(scheme, out_features, in_features)

    def encode(self, codes: Codes, scheme: Scheme) -> dict[str, Tensor]:
        """As the scheme's format encodes."""
        return self._format_of(scheme).encode(codes, scheme)

    def decode(
        self, module: str, stored: Mapping[str, Tensor], config: Mapping[str, Any], out_features: int, in_features: int
    ) -> Codes:
        """As the format of the module's group decodes."""
        held = StoredLinear(module, stored)
        group = compressed_groups.find_group(held, config)
        read = _read(group, config)
        assert read is not None, "matches() has read every group"
        format, scheme = read
        return format.decode(held, scheme, out_features, in_features)

    def quantization_config(self, groups: Sequence[SchemeGroup], ignore: list[str]) -> dict[str, Any]:
        """As the library writes it: a single group for all linears, several by the names of their modules.

        Raises WorkerError (invalid_request) if no module is stored in the format that gives the layout its name.
        """
        formats = [self._format_of(group.scheme).name for group in groups]
        if self.name not in formats:
            raise WorkerError(
                WorkerErrorCode.INVALID_REQUEST,
                f"layout {self.name!r} cannot store {groups[0].scheme.format!r} with these options; "
                f"choose layout {formats[0]!r}",
            )
        compressed = [module for group in groups for module in group.modules]
        targets = [["Linear"]] if len(groups) == 1 else [group.modules for group in groups]
        return {
            "quant_method": "compressed-tensors",
            "format": self.name if len(set(formats)) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{number}": compressed_groups.group_of(group.scheme, format, names)
                for number, (group, format, names) in enumerate(zip(groups, formats, targets, strict=True))
            },
            "ignore": kept_modules.patterns(ignore, compressed),
            "kv_cache_scheme": None,
        }

    def matches(self, quantization_config: Mapping[str, Any]) -> bool:
        """True if every group can be read and the first is in this layout's format."""
        if quantization_config.get("quant_method") != "compressed-tensors":
            return False
        groups = compressed_groups.read_groups(quantization_config)
        if groups is None or compressed_groups.has_more(quantization_config):
            return False
        read = [_read(group, quantization_config) for group in groups.values()]
        formats = [None if one is None else one[0].name for one in read]
        return None not in formats and formats[0] == self.name

    def holds_linear(self, stored: Mapping[str, TensorLayout]) -> bool:
        """True with a packed weight or one of bytes: without a scale that is no plain weight either."""
        weight = stored.get("weight")
        is_bytes = weight is not None and weight.dtype in (torch.int8, torch.float8_e4m3fn)
        return "weight_packed" in stored or is_bytes

    def _format_of(self, scheme: Scheme) -> GroupFormat:
        own = _FORMATS[self.name]
        return own if own.holds(scheme) else next(format for format in _FORMATS.values() if format.holds(scheme))


def _read(group: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[GroupFormat, Scheme] | None:
    """Format and scheme of a group; None if slimserve cannot read it."""
    scheme = compressed_groups.read_scheme(group)
    if scheme is None:
        return None
    name = compressed_groups.read_format(group, config)
    if name == "naive-quantized":
        # The library's fallback: the same tensors.
        name = IntQuantized.name if scheme.kind == "grid" else FloatQuantized.name
    format = _FORMATS.get(name)
    return (format, scheme) if format is not None and format.reads(scheme) else None
