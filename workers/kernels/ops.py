"""The schemas of slimserve's ops, and which implementation runs on which device.

`import workers.kernels.ops` makes `torch.ops.slimserve.*` callable. A device without an entry runs the definition in
`reference`, which also documents the arguments.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.kernels import cpu, cpu_expanded, cpu_int4, cpu_integer, reference, triton_choice

# What `kernel` says where weights are expanded for each product: right, and no faster than without compression.
EMULATED = "emulated"

_LIBRARY = "slimserve"
# For each op its arguments, its definition, and what runs on the CPU. What runs on CUDA: `triton_choice`.
_OPS: dict[str, tuple[str, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "int8_linear": (
        "Tensor x, Tensor weight, Tensor scale, Tensor? bias",
        reference.int8_linear, cpu.int8_linear,
    ),
    "int4_linear": (
        "Tensor x, Tensor packed, Tensor scale_and_offset, Tensor? bias, int out_features",
        reference.int4_linear, cpu_int4.int4_linear,
    ),
    "grid_linear": (
        "Tensor x, Tensor codes, Tensor scale, Tensor zero, Tensor? group_index, Tensor? bias, int activation_bits",
        reference.grid_linear, cpu_expanded.grid_linear,
    ),
    "codebook_linear": (
        "Tensor x, Tensor packed, Tensor codebook, Tensor absmax, Tensor? bias, int block_size, int out_features",
        reference.codebook_linear, cpu_expanded.codebook_linear,
    ),
    "w8a8_linear": (
        "Tensor x, Tensor weight, Tensor scale, Tensor? bias",
        reference.w8a8_linear, cpu_integer.w8a8_linear,
    ),
    "llm_int8_linear": (
        "Tensor x, Tensor weight, Tensor absmax, Tensor? bias, float threshold",
        reference.llm_int8_linear, cpu_integer.llm_int8_linear,
    ),
    "float8_linear": (
        "Tensor x, Tensor values, Tensor scale, Tensor? bias, int tile, bool has_dynamic_activations",
        reference.float8_linear, cpu_expanded.float8_linear,
    ),
}  # fmt: skip

# op, device: the name of the direct product there, and whether this machine takes it. Ops not named here expand.
_DIRECT: dict[tuple[str, str], tuple[str, Callable[[], bool]]] = {
    ("int8_linear", "cpu"): ("int8pack", cpu.packed_op_wins),
    ("int4_linear", "cpu"): ("int4pack", cpu_int4.packed_op_wins),
    ("w8a8_linear", "cpu"): ("int_mm", cpu_integer.integer_op_wins),
    ("llm_int8_linear", "cpu"): ("int_mm", cpu_integer.integer_op_wins),
    **{(op, "cuda"): (name, functools.partial(triton_choice.wins, op)) for op, name in triton_choice.NAMES.items()},
}
_ROUND_TO_BF16 = frozenset({"int8pack", "int4pack"})

for _name, (_arguments, _reference, _cpu) in _OPS.items():
    torch.library.define(f"{_LIBRARY}::{_name}", f"({_arguments}) -> Tensor")
    torch.library.impl(f"{_LIBRARY}::{_name}", "CompositeExplicitAutograd")(_reference)
    torch.library.impl(f"{_LIBRARY}::{_name}", "CPU")(_cpu)
    torch.library.impl(f"{_LIBRARY}::{_name}", "CUDA")(triton_choice.implementation(_name))


def _rows_of_weight(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _said_rows(x: Tensor, *arguments: Any) -> Tensor:
    """For packed weights: the last argument is out_features."""
    return x.new_empty((*x.shape[:-1], arguments[-1]))


for _name, (_arguments, *_) in _OPS.items():
    _shape = _said_rows if _arguments.endswith("int out_features") else _rows_of_weight
    torch.library.register_fake(f"{_LIBRARY}::{_name}", _shape)


def kernel(name: str, device: torch.device) -> str:
    """Which product an op makes on this device: the name of one that reads the stored codes, or EMULATED."""
    direct, wins = _DIRECT.get((name, device.type), (EMULATED, _never))
    return direct if wins() else EMULATED


def _never() -> bool:
    return False


def product_dtype(name: str, device: torch.device) -> torch.dtype:
    """The shortest dtype that an op rounds activations to on this device, whatever theirs is; fp32: it does not."""
    return torch.bfloat16 if kernel(name, device) in _ROUND_TO_BF16 else torch.float32


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.int8_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.int8_linear(x, weight, scale, bias)
    return result


def int4_linear(x: Tensor, packed: Tensor, scale_and_offset: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`reference.int4_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.int4_linear(x, packed, scale_and_offset, bias, out_features)
    return result


def grid_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_index: Tensor | None,
    bias: Tensor | None,
    activation_bits: int,
) -> Tensor:
    """`reference.grid_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.grid_linear(x, codes, scale, zero, group_index, bias, activation_bits)
    return result


def codebook_linear(
    x: Tensor,
    packed: Tensor,
    codebook: Tensor,
    absmax: Tensor,
    bias: Tensor | None,
    block_size: int,
    out_features: int,
) -> Tensor:
    """`reference.codebook_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.codebook_linear(x, packed, codebook, absmax, bias, block_size, out_features)
    return result


def w8a8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.w8a8_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.w8a8_linear(x, weight, scale, bias)
    return result


def llm_int8_linear(x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    """`reference.llm_int8_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.llm_int8_linear(x, weight, absmax, bias, threshold)
    return result


def float8_linear(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> Tensor:
    """`reference.float8_linear` on x's device."""
    result: Tensor = torch.ops.slimserve.float8_linear(x, values, scale, bias, tile, has_dynamic_activations)
    return result
