"""The Triton kernels on CPU tensors, in Triton's interpreter. Run by test_triton.py, in a process of its own.

The interpreter of Triton 3.7 stores bf16 as its bits and then multiplies and converts the bits; two methods of it are
replaced here by ones that know the numbers. Inline PTX cannot run in it: its few instructions are interpreted below.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.workers.kernels import triton_operands
from tests.workers.kernels.bounds import FP32, assert_product, random
from tests.workers.kernels.triton_operands import Operands
from workers.kernels import reference, triton_codebook, triton_float8, triton_int4, triton_int8, triton_split

ROWS = pytest.mark.parametrize("num_rows", [1, 3, 16, 17])
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])

Make = Callable[[int, int, torch.dtype], Operands]
# kernel, definition, outputs (no multiple of a tile of 64 or 128), columns, operands
CASES: dict[str, tuple[Any, Callable[..., Tensor], int, int, Make]] = {
    "int4-g32": (triton_int4, reference.int4_linear, 130, 320, lambda *a: triton_operands.int4(*a, group_size=32)),
    "int4-g64": (triton_int4, reference.int4_linear, 70, 512, lambda *a: triton_operands.int4(*a, group_size=64)),
    "int4-g128": (triton_int4, reference.int4_linear, 33, 1152, lambda *a: triton_operands.int4(*a, group_size=128)),
    "int4-g256": (triton_int4, reference.int4_linear, 16, 1024, lambda *a: triton_operands.int4(*a, group_size=256)),
    "int4-rows-together": (
        triton_int4, reference.int4_linear, 130, 256,
        lambda *a: triton_operands.int4(*a, has_columns_together=False),
    ),
    "codebook-64": (triton_codebook, reference.codebook_linear, 70, 576, triton_operands.codebook),
    "codebook-32": (
        triton_codebook, reference.codebook_linear, 5, 96,
        lambda *a: triton_operands.codebook(*a, block_size=32),
    ),
    "codebook-256": (
        triton_codebook, reference.codebook_linear, 65, 512,
        lambda *a: triton_operands.codebook(*a, block_size=256),
    ),
    "int8": (triton_int8, reference.int8_linear, 130, 1152, triton_operands.int8),
    "int8-step-of-32": (triton_int8, reference.int8_linear, 37, 352, triton_operands.int8),
    "float8": (triton_float8, reference.float8_linear, 70, 896, triton_operands.float8),
    "float8-tile": (triton_float8, reference.float8_linear, 150, 640, lambda *a: triton_operands.float8(*a, tile=128)),
    "float8-tile-of-two-steps": (
        triton_float8, reference.float8_linear, 300, 640,
        lambda *a: triton_operands.float8(*a, tile=256),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", list(CASES))


def widened(handle: TensorHandle) -> np.ndarray:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data.astype(np.float32)
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


@pytest.fixture(autouse=True)
def _interpreter_that_knows_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    cast = InterpreterBuilder.cast_impl

    def cast_impl(self: InterpreterBuilder, source: TensorHandle, target: Any) -> TensorHandle:
        if target.scalar != tl.bfloat16:
            return cast(self, source, target)
        bits = torch.from_numpy(np.ascontiguousarray(widened(source))).to(torch.bfloat16).view(torch.uint16)
        return TensorHandle(bits.numpy(), tl.bfloat16)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: Any) -> Any:
        # no library: it would sum in another order for another number of rows
        product = (widened(a)[:, :, None] * widened(b)[None]).sum(axis=1, dtype=np.float32)
        return TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@EVERY
@DTYPES
@ROWS
def test_product_is_within_rounding(name: str, dtype: torch.dtype, num_rows: int) -> None:
    kernel, definition, n, k, make = CASES[name]
    operands = make(n, k, dtype)
    x = random(num_rows, k, dtype=dtype)
    arguments = operands.arguments(x, None)

    assert kernel.takes(*arguments)
    result = kernel.product(*arguments)

    assert (result.shape, result.dtype) == ((num_rows, n), dtype)
    unit = torch.finfo(dtype).eps / 2
    # The sum is rounded once to x's dtype, the terms are not (but a codebook's levels). FP32: scales are one more
    # product. fp16: a result below its smallest normal number is off by half the step there.
    assert_product(result, x, operands.weight, unit_in=operands.unit_in + 2 * FP32, unit_out=1.01 * unit)
    torch.testing.assert_close(result, definition(*arguments), rtol=2 * unit, atol=2 * unit * float(result.abs().max()))


@EVERY
@DTYPES
def test_row_alone_equals_the_row_in_any_batch_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    kernel, _, n, k, make = CASES[name]
    operands = make(n, k, dtype)
    x = random(40, k, dtype=dtype)

    whole = kernel.product(*operands.arguments(x, None))

    for rows in (slice(0, 1), slice(2, 5), slice(16, 33)):
        assert torch.equal(kernel.product(*operands.arguments(x[rows], None)), whole[rows])


@EVERY
def test_bias_is_added_before_rounding(name: str) -> None:
    kernel, definition, n, k, make = CASES[name]
    operands = make(n, k, torch.bfloat16)
    x = random(6, k, dtype=torch.bfloat16)
    bias = random(n, seed=9) * 100

    result = kernel.product(*operands.arguments(x.reshape(2, 3, k), bias))

    assert result.shape == (2, 3, n)
    exact = definition(*operands.arguments(x.double(), bias.double()))
    terms = x.double().abs() @ operands.weight.abs().T
    # one rounding of the whole, 2**-8 in bf16: rounded before it too, the product would be off by as much again
    bound = (operands.unit_in + 2 * k * FP32) * terms + 1.001 * 2**-8 * exact.abs()
    assert ((result.reshape(6, n).double() - exact).abs() <= bound).all()


@EVERY
def test_numbers_that_are_not_finite_stay_in_their_row(name: str) -> None:
    kernel, _, n, k, make = CASES[name]
    operands = make(n, k, torch.bfloat16)
    x = random(5, k, dtype=torch.bfloat16)
    poisoned = x.clone()
    poisoned[2, 7] = torch.nan

    result = kernel.product(*operands.arguments(poisoned, None))

    keep = [0, 1, 3, 4]
    assert torch.equal(result[keep], kernel.product(*operands.arguments(x, None))[keep])
    assert result[2].isnan().all()


@EVERY
@pytest.mark.parametrize("num_multiprocessors", [1, 3, 132])
def test_every_split_of_k_gives_the_product(
    name: str, num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_split, "num_multiprocessors", lambda device: num_multiprocessors)
    kernel, definition, n, k, make = CASES[name]
    operands = make(n, k, torch.float16)
    x = random(2, k, dtype=torch.float16)
    arguments = operands.arguments(x, None)

    result = kernel.product(*arguments)

    atol = 2**-10 * float(result.abs().max())
    torch.testing.assert_close(result, definition(*arguments), rtol=2**-10, atol=atol)


def test_plan_covers_every_step_once_and_does_not_look_at_rows() -> None:
    device = torch.device("cpu")
    for num_steps in range(1, 70):
        for tiles in (1, 2, 5):
            plans = [triton_split.plan(rows, tiles, num_steps, device) for rows in (1, 16, 17, 128)]
            assert len({(plan.num_splits, plan.steps_per_split) for plan in plans}) == 1
            used = plans[0].num_splits * plans[0].steps_per_split
            assert num_steps <= used < num_steps + plans[0].steps_per_split


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("int4-g64", lambda x: x.float()),
        ("int4-g64", lambda x: x[:0]),
        ("int8", lambda x: x.expand(triton_split.MAX_ROWS + 1, -1)),
        ("float8", lambda x: x.double()),
    ],
    ids=["fp32", "empty", "many-rows", "fp64"],
)
def test_other_rows_are_left_to_plain_torch(name: str, change: Callable[[Tensor], Tensor]) -> None:
    kernel, _, n, k, make = CASES[name]
    operands = make(n, k, torch.bfloat16)

    assert not kernel.takes(*operands.arguments(change(random(1, k, dtype=torch.bfloat16)), None))


def test_other_shapes_are_left_to_plain_torch() -> None:
    x = random(1, 96, dtype=torch.bfloat16)

    assert not triton_int4.takes(x, *triton_operands.int4(8, 96, x.dtype, group_size=96).before, None, 8)
    assert not triton_codebook.takes(x, *triton_operands.codebook(8, 96, x.dtype).before, None, 64, 8)
    assert not triton_int8.takes(x[:, :40], torch.zeros(8, 40), torch.ones(8, 1), None)
    assert not triton_float8.takes(x, torch.zeros(8, 96), torch.ones(1, 5), None, 20, False)


@pytest.mark.parametrize("kernel", [triton_int4, triton_codebook, triton_int8, triton_float8])
def test_check_at_startup_uses_arguments_that_the_kernel_takes(kernel: Any) -> None:
    arguments = kernel.sample(torch.device("cpu"), torch.Generator().manual_seed(0))

    assert kernel.takes(*arguments)
    assert arguments[0].shape[0] == 1


# What PTX's manual says of the instructions in use, on (bytes, 4) arrays of 32-bit registers.
def run_ptx(text: str, inputs: dict[int, np.ndarray], num_outputs: int) -> list[np.ndarray]:
    registers: dict[str, Any] = {f"${number}": value for number, value in inputs.items()}

    def value(word: str) -> Any:
        return registers[word] if word in registers else np.uint32(int(word, 0))

    for line in instructions(text):
        name, target, *words = re.split(r"[\s,]+", line)
        registers[target] = _PTX[name](*(value(word) for word in words))
    return [registers[f"${number}"] for number in range(num_outputs)]


def instructions(text: str) -> Iterator[str]:
    for statement in text.strip("{} \n").split(";"):
        line = statement.strip()
        if line and not line.startswith(".reg"):
            yield line


def _prmt(a: Any, b: Any, selectors: Any) -> Any:
    pool = a.astype(np.uint64) | (np.broadcast_to(b, a.shape).astype(np.uint64) << np.uint64(32))
    result = np.zeros(a.shape, np.uint64)
    for place in range(4):
        selector = (np.uint64(selectors) >> np.uint64(4 * place)) & np.uint64(15)
        assert (selector < 8).all(), "the fourth bit would replicate a sign"
        result |= ((pool >> (np.uint64(8) * selector)) & np.uint64(255)) << np.uint64(8 * place)
    return result.astype(np.uint32)


def _lop3(a: Any, b: Any, c: Any, table: Any) -> Any:
    assert table == 0xEA
    return (a & b) | c


def _fma(dtype: torch.dtype) -> Callable[[Any, Any, Any], Any]:
    def pairs(register: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(register).reshape(-1).view(np.int16)).view(dtype).double()

    def run(a: Any, b: Any, c: Any) -> Any:
        b, c = (np.broadcast_to(register, a.shape) for register in (b, c))
        result = (pairs(a) * pairs(b) + pairs(c)).to(dtype)
        return result.view(torch.int16).numpy().view(np.uint32).reshape(a.shape)

    return run


_PTX: dict[str, Callable[..., Any]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shr.b32": lambda a, b: a >> b,
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": _fma(torch.bfloat16),
    "fma.rn.f16x2": _fma(torch.float16),
}

EVERY_BYTE = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 4)


def as_numbers(outputs: list[np.ndarray], dtype: torch.dtype) -> Tensor:
    """The numbers behind two registers of pairs: (registers, 4)."""
    pairs = np.stack(outputs, axis=-1).reshape(-1, 2).view(np.int16)
    return torch.from_numpy(np.ascontiguousarray(pairs)).view(dtype).double()


@DTYPES
def test_ptx_unpacks_every_byte(dtype: torch.dtype) -> None:
    text = triton_int4.UNPACK_BF16 if dtype is torch.bfloat16 else triton_int4.UNPACK_FP16

    outputs = run_ptx(text.value, {4: EVERY_BYTE.view(np.uint32)[:, 0]}, 4)

    codes = torch.from_numpy(EVERY_BYTE.astype(np.int16))
    assert torch.equal(as_numbers(outputs[:2], dtype), (codes & 15).double() - 8)
    assert torch.equal(as_numbers(outputs[2:], dtype), (codes >> 4).double() - 8)


@DTYPES
def test_ptx_looks_every_byte_up(dtype: torch.dtype) -> None:
    levels = random(16).to(dtype)
    bits = levels.view(torch.int16).numpy().view(np.uint16)
    bytes_per_place = [bits >> 8, bits & 255]
    inputs = {4: EVERY_BYTE.view(np.uint32)[:, 0]}
    for half, part in enumerate(bytes_per_place):
        for four in range(4):
            table = part[4 * four : 4 * four + 4].astype(np.uint8).view(np.uint32)
            inputs[5 + 16 * half + 4 * four] = np.broadcast_to(table, inputs[4].shape)

    outputs = run_ptx(triton_codebook.LOOK_UP.value, inputs, 4)

    codes = torch.from_numpy(EVERY_BYTE.astype(np.int64))
    assert torch.equal(as_numbers(outputs[:2], dtype), levels.double()[codes & 15])
    assert torch.equal(as_numbers(outputs[2:], dtype), levels.double()[codes >> 4])


def test_interpreter_is_in_use() -> None:
    assert triton.knobs.runtime.interpret
