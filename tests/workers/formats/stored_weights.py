"""One weight in every form that is stored, and the layer that each becomes."""

from collections.abc import Callable
from dataclasses import replace

import torch

from tests.workers.kernels.bounds import random
from workers.compress import codebook, fp8, llm_int8, rtn
from workers.formats.codebook import CodebookLinear
from workers.formats.codes import Codes, GridCodes
from workers.formats.fp8 import Float8Linear
from workers.formats.grid_linear import GridLinear
from workers.formats.int4 import Int4Linear
from workers.formats.int8 import Int8Linear
from workers.formats.linear import QuantizedLinear
from workers.formats.llm_int8 import LlmInt8Linear
from workers.formats.w8a8 import W8A8Linear

CPU = torch.device("cpu")
N, K = 48, 128
WEIGHT = random(N, K)


def grid(num_bits: int, group_size: int, is_symmetric: bool = True) -> GridCodes:
    return rtn.quantize(
        WEIGHT, num_bits=num_bits, group_size=group_size, is_symmetric=is_symmetric, scale_dtype=torch.bfloat16
    )


def mixed(num_bits: int) -> GridCodes:
    """As act-order leaves columns: groups of 32, and any column in any of them."""
    groups = torch.arange(K, dtype=torch.int32) // 32
    order = torch.randperm(K, generator=torch.Generator().manual_seed(3))
    return replace(grid(num_bits, 32, is_symmetric=False), group_index=groups[order])


CASES: dict[str, tuple[Callable[[], Codes], type[QuantizedLinear], str]] = {
    "int8": (lambda: grid(8, -1), Int8Linear, "int8"),
    "int8-groups": (lambda: grid(8, 32), GridLinear, "int8"),
    "int8-asymmetric": (lambda: grid(8, -1, is_symmetric=False), GridLinear, "int8"),
    "int4-g32": (lambda: grid(4, 32), Int4Linear, "int4"),
    "int4-channel-asymmetric": (lambda: grid(4, -1, is_symmetric=False), Int4Linear, "int4"),
    "int3-g64": (lambda: grid(3, 64), Int4Linear, "int3"),
    "int2-tensor": (lambda: grid(2, 0), Int4Linear, "int2"),
    "int4-g16": (lambda: grid(4, 16), GridLinear, "int4"),
    "int4-act-order": (lambda: mixed(4), Int4Linear, "int4"),
    "int8-act-order": (lambda: mixed(8), GridLinear, "int8"),
    "w8a8": (lambda: replace(grid(8, -1), activation_bits=8), W8A8Linear, "w8a8"),
    "nf4": (lambda: codebook.quantize(WEIGHT, "nf4", 64, True), CodebookLinear, "nf4"),
    "fp4": (lambda: codebook.quantize(WEIGHT, "fp4", 64, False), CodebookLinear, "fp4"),
    "fp8": (lambda: fp8.quantize(WEIGHT, True), Float8Linear, "fp8"),
    "fp8-tiles": (lambda: fp8.quantize(WEIGHT, False, 32), Float8Linear, "fp8"),
    "llm-int8": (lambda: llm_int8.quantize(WEIGHT, 6.0), LlmInt8Linear, "llm_int8"),
}
