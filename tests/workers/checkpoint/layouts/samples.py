"""Every scheme that each layout writes, and random codes of a scheme."""

from typing import Any

import torch
from torch import Tensor

from workers.checkpoint.layouts.layout import SchemeGroup
from workers.checkpoint.layouts.table import LAYOUTS
from workers.compress.codebook import LEVELS, dynamic_map
from workers.formats.codes import CodebookCodes, Codes, Float8Codes, GridCodes, NestedAbsmax, OutlierCodes
from workers.formats.scheme import Scheme

# Rows and columns that whole words, groups of 32 and 64 and tiles of 128 divide.
ROWS, COLUMNS = 64, 256
MODULE = "model.layers.0.mlp.up_proj"


def grid_scheme(num_bits: int, *, group_size: int = 32, symmetric: bool = True, act_order: bool = False) -> Scheme:
    return Scheme(kind="grid", num_bits=num_bits, group_size=group_size, symmetric=symmetric, act_order=act_order)


def float8_scheme(group_size: int = -1, *, activation_bits: int | None = 8) -> Scheme:
    return Scheme(kind="float8", num_bits=8, group_size=group_size, activation_bits=activation_bits)


W8A8 = Scheme(kind="grid", num_bits=8, activation_bits=8)
CHANNEL8 = grid_scheme(8, group_size=-1)
LLM_INT8 = Scheme(kind="outlier", num_bits=8, activation_bits=8, threshold=6.0)

_GRIDS = {
    f"int{bits}-{name}-{'sym' if symmetric else 'asym'}": grid_scheme(bits, group_size=size, symmetric=symmetric)
    for bits in (2, 3, 4, 8)
    for name, size in (("g32", 32), ("channel", -1))
    for symmetric in (True, False)
}
_ACT_ORDER = {f"{name}-act": grid_scheme(bits, act_order=True) for name, bits in (("int3", 3), ("int4", 4))}
_BLOCKS = {
    f"{kind}-b{size}-{'nested' if nested else 'single'}": Scheme(
        kind=kind, num_bits=4, group_size=size, double_quant=nested
    )
    for kind in ("nf4", "fp4")
    for size in (64, 512)
    for nested in (True, False)
}
_FLOATS = {
    "fp8-channel": float8_scheme(),
    "fp8-channel-weights": float8_scheme(activation_bits=None),
    "fp8-tile128": float8_scheme(128),
    "fp8-tile128-weights": float8_scheme(128, activation_bits=None),
}
WRITTEN: dict[str, dict[str, Scheme]] = {
    "gptq": {name: scheme for name, scheme in (_GRIDS | _ACT_ORDER).items() if scheme.symmetric},
    "gptq_v2": _GRIDS | _ACT_ORDER,
    "awq": {name: scheme for name, scheme in _GRIDS.items() if scheme.num_bits == 4},
    "pack-quantized": _GRIDS,
    "int-quantized": {"int8-channel": CHANNEL8, "w8a8": W8A8},
    "float-quantized": _FLOATS,
    "bitsandbytes": _BLOCKS | {"llm-int8": LLM_INT8},
    "fp8": {"fp8-tile128": _FLOATS["fp8-tile128"]},
}
CASES = [(layout, name) for layout, schemes in WRITTEN.items() for name in schemes]


def codes_of(scheme: Scheme, rows: int = ROWS, columns: int = COLUMNS, *, seed: int = 0) -> Codes:
    """Codes over all of their range. Scales of grids are numbers that fp16 and bf16 both hold."""
    random = torch.Generator().manual_seed(seed)
    if scheme.kind == "grid":
        return _grid(scheme, rows, columns, random)
    if scheme.kind == "outlier":
        codes = torch.randint(-127, 128, (rows, columns), generator=random, dtype=torch.int8)
        return OutlierCodes(codes=codes, absmax=torch.rand(rows, generator=random), threshold=scheme.threshold)
    if scheme.kind == "float8":
        tile = None if scheme.group_size == -1 else scheme.group_size
        shape = (rows, 1) if tile is None else (-(-rows // tile), -(-columns // tile))
        return Float8Codes(
            values=torch.randn(rows, columns, generator=random).to(torch.float8_e4m3fn),
            scale=torch.rand(shape, generator=random) + 0.5,
            tile=tile,
            has_dynamic_activations=scheme.activation_bits is not None,
        )
    num_blocks = -(-rows * columns // scheme.group_size)
    return CodebookCodes(
        kind=scheme.kind,
        codes=torch.randint(0, 16, (rows, columns), generator=random, dtype=torch.uint8),
        codebook=torch.tensor(LEVELS[scheme.kind]),
        absmax=_nested(num_blocks, random) if scheme.double_quant else torch.rand(num_blocks, generator=random),
        block_size=scheme.group_size,
    )


def _grid(scheme: Scheme, rows: int, columns: int, random: torch.Generator) -> GridCodes:
    bits, groups = scheme.num_bits, scheme.num_groups(columns)
    low = 1 if bits == 8 and scheme.symmetric else 0
    zero = torch.randint(1, 2**bits, (rows, groups), generator=random, dtype=torch.uint8)
    runs = torch.arange(columns, dtype=torch.int32) // (columns // groups)
    return GridCodes(
        num_bits=bits,
        codes=torch.randint(low, 2**bits, (rows, columns), generator=random, dtype=torch.uint8),
        scale=torch.rand(rows, groups, generator=random).clamp(min=0.01).to(torch.bfloat16),
        zero=torch.full_like(zero, 2 ** (bits - 1)) if scheme.symmetric else zero,
        group_index=runs[torch.randperm(columns, generator=random)] if scheme.act_order else None,
        activation_bits=scheme.activation_bits,
    )


def _nested(num_blocks: int, random: torch.Generator) -> NestedAbsmax:
    return NestedAbsmax(
        codes=torch.randint(0, 256, (num_blocks,), generator=random, dtype=torch.uint8),
        code=dynamic_map(),
        absmax=torch.rand(-(-num_blocks // 256), generator=random),
        offset=float(torch.rand(1, generator=random)),
        block_size=256,
    )


def bits_at(words: list[int], index: int, num_bits: int) -> int:
    """Value `index` of a stream of bits through int32 words, the lowest bit first."""
    stream = sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(words))
    return (stream >> (index * num_bits)) & (2**num_bits - 1)


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def config_of(layout: str, *groups: tuple[Scheme, list[str]], ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    named = [SchemeGroup(scheme=scheme, modules=modules) for scheme, modules in groups]
    return LAYOUTS[layout].quantization_config(named, list(ignore))


def first_group(config: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = config["config_groups"]["group_0"]
    return group
