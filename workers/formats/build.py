"""From the codes of a weight to the layer that multiplies with them: the one place where a kind meets its layers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.formats.codebook import CodebookLinear
from workers.formats.codes import CodebookCodes, Codes, Float8Codes, GridCodes, OutlierCodes
from workers.formats.fp8 import Float8Linear
from workers.formats.grid_linear import GridLinear
from workers.formats.int4 import Int4Linear
from workers.formats.int8 import Int8Linear
from workers.formats.linear import QuantizedLinear, frozen
from workers.formats.llm_int8 import LlmInt8Linear
from workers.formats.w8a8 import W8A8Linear

_Accepts = Callable[[Any], bool]
_FromCodes = Callable[..., QuantizedLinear]


def _always(_: Codes) -> bool:
    return True


# Each kind's layers, the fastest first; the last takes every code of its kind.
_LAYERS: dict[type, tuple[tuple[_Accepts, _FromCodes], ...]] = {
    GridCodes: (
        (Int8Linear.accepts, Int8Linear.from_codes),
        (W8A8Linear.accepts, W8A8Linear.from_codes),
        (Int4Linear.accepts, Int4Linear.from_codes),
        (_always, GridLinear.from_codes),
    ),
    CodebookCodes: ((_always, CodebookLinear.from_codes),),
    Float8Codes: ((_always, Float8Linear.from_codes),),
    OutlierCodes: ((_always, LlmInt8Linear.from_codes),),
}
# What takes the place of layers whose op on the CPU rounds activations to bf16.
_UNROUNDED_ON_CPU: dict[_FromCodes, _FromCodes] = {
    Int8Linear.from_codes: GridLinear.from_codes,
    Int4Linear.from_codes: Int4Linear.with_wide_scales,
}


def build_linear(
    codes: Codes, bias: Tensor | None, *, dtype: torch.dtype, device: torch.device, is_unrounded: bool = False
) -> QuantizedLinear:
    """The layer for one weight, in eval mode, on `device`, with tensors of its own memory or of the codes'.

    dtype: of the activations and so of the bias. is_unrounded: products take activations as they are, but for what the
    format itself rounds, however slow that is on this device. Raises WorkerError (variant_corrupt) for weights that are
    not numbers.
    """
    held = None if bias is None else frozen(bias.detach().to(device, dtype))
    from_codes = next(make for accepts, make in _LAYERS[type(codes)] if accepts(codes))
    if is_unrounded and device.type == "cpu":
        from_codes = _UNROUNDED_ON_CPU.get(from_codes, from_codes)
    return from_codes(codes, held, dtype=dtype, device=device).eval()
