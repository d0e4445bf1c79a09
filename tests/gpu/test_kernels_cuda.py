"""Every kernel on a real device against fp64: what Triton's interpreter cannot show (PTX, tensor cores, timing)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.kernels import triton_operands
from tests.workers.kernels.bounds import FP32, assert_product, random
from tests.workers.kernels.triton_operands import Operands
from workers.kernels import cuda, ops, reference, triton_choice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch built for it"),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])

# op, outputs, columns, operands. Shapes of models' linears, and ragged ones.
CASES: dict[str, tuple[str, int, int, Callable[[int, int, torch.dtype], Operands]]] = {
    "int4-g32": ("int4_linear", 1152, 896, lambda *a: triton_operands.int4(*a, group_size=32)),
    "int4-g64": ("int4_linear", 130, 4864, lambda *a: triton_operands.int4(*a, group_size=64)),
    "int4-g128": ("int4_linear", 4096, 4096, lambda *a: triton_operands.int4(*a, group_size=128)),
    "int4-g256": ("int4_linear", 1001, 1024, lambda *a: triton_operands.int4(*a, group_size=256)),
    "int4-rows-together": (
        "int4_linear", 900, 2048,
        lambda *a: triton_operands.int4(*a, group_size=128, has_columns_together=False),
    ),
    "codebook-64": ("codebook_linear", 4096, 4096, triton_operands.codebook),
    "codebook-64-ragged": ("codebook_linear", 1001, 896, triton_operands.codebook),
    "codebook-256": ("codebook_linear", 65, 512, lambda *a: triton_operands.codebook(*a, block_size=256)),
    "int8": ("int8_linear", 4096, 4096, triton_operands.int8),
    "int8-ragged": ("int8_linear", 1001, 352, triton_operands.int8),
    "float8": ("float8_linear", 4096, 4096, triton_operands.float8),
    "float8-tile": ("float8_linear", 1001, 1152, lambda *a: triton_operands.float8(*a, tile=128)),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", list(CASES))


def arguments_of(name: str, x: Tensor, bias: Tensor | None = None) -> tuple[tuple[Any, ...], Operands]:
    _, n, k, make = CASES[name]
    operands = make(n, k, x.dtype)
    return operands.arguments(x, bias), operands


def rows(name: str, num_rows: int, dtype: torch.dtype) -> Tensor:
    return random(num_rows, CASES[name][2], dtype=dtype).cuda()


def with_rows(arguments: tuple[Any, ...], x: Tensor) -> tuple[Any, ...]:
    return x, *arguments[1:]


@pytest.mark.parametrize("op", ["int8_linear", "int4_linear", "codebook_linear", "float8_linear"])
def test_kernel_passes_its_check_on_this_device(op: str) -> None:
    pytest.importorskip("triton")

    assert ops.kernel(op, torch.device("cuda")) == f"triton-{op.removesuffix('_linear')}"


@EVERY
@DTYPES
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 32, 33, 128])
def test_kernel_is_within_rounding(name: str, dtype: torch.dtype, num_rows: int) -> None:
    kernel = triton_choice.find(CASES[name][0])
    if kernel is None:
        pytest.skip("this machine expands the weights: triton is not installed or its kernel not in use")
    arguments, operands = arguments_of(name, rows(name, num_rows, dtype))

    assert kernel.takes(*arguments)
    result = kernel.product(*arguments)

    unit = torch.finfo(dtype).eps / 2
    unit_in = operands.unit_in + 2 * FP32
    assert_product(result, arguments[0], operands.weight.cuda(), unit_in=unit_in, unit_out=1.01 * unit)
    assert torch.equal(getattr(ops, CASES[name][0])(*arguments), result)


@EVERY
@DTYPES
def test_row_alone_equals_the_row_in_any_batch_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    op = getattr(ops, CASES[name][0])
    arguments, _ = arguments_of(name, rows(name, 128, dtype))
    if ops.kernel(CASES[name][0], torch.device("cuda")) == ops.EMULATED:
        pytest.skip("cuBLAS chooses its sums by the number of rows")
    x = arguments[0]

    whole = op(*arguments)

    for part in (slice(0, 1), slice(5, 8), slice(16, 32), slice(30, 63), slice(60, 128)):
        assert torch.equal(op(*with_rows(arguments, x[part])), whole[part])


@EVERY
def test_same_input_gives_the_same_bits(name: str) -> None:
    op = getattr(ops, CASES[name][0])
    arguments, _ = arguments_of(name, rows(name, 8, torch.bfloat16))

    first = op(*arguments)

    assert all(torch.equal(op(*arguments), first) for _ in range(20))


@EVERY
@DTYPES
@pytest.mark.parametrize("num_rows", [1, 5, 200], ids=["one", "few", "many"])
def test_op_agrees_with_its_definition(name: str, dtype: torch.dtype, num_rows: int) -> None:
    op, n, k, _ = CASES[name]
    bias = random(n, seed=9).cuda()
    arguments, operands = arguments_of(name, rows(name, num_rows, dtype), bias)

    result = getattr(ops, op)(*arguments)

    assert (result.shape, result.dtype) == ((num_rows, n), dtype)
    exact = getattr(reference, op)(*arguments).double()
    unit = torch.finfo(dtype).eps / 2
    # Many rows: the weight is made in x's dtype, in int4 from up to 8 steps and an offset of up to 8: 20 units. The
    # product is rounded before or after the bias, and both results here.
    terms = arguments[0].double().abs() @ operands.weight.cuda().abs().T
    bound = (20 * unit + 2 * k * FP32) * terms + 3 * unit * (exact.abs() + bias.double().abs())
    assert ((result.double() - exact).abs() <= bound).all()


@EVERY
def test_graph_replays_what_was_captured(name: str) -> None:
    op = getattr(ops, CASES[name][0])
    arguments, _ = arguments_of(name, rows(name, 4, torch.bfloat16))
    expected = op(*arguments)
    other = torch.randn_like(arguments[0])
    expected_other = op(*with_rows(arguments, other))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    with torch.cuda.graph(graph):
        result = op(*arguments)

    graph.replay()
    assert torch.equal(result, expected)
    arguments[0].copy_(other)
    graph.replay()
    assert torch.equal(result, expected_other)


@pytest.mark.parametrize("num_rows", [1, 3, 17, 200])
def test_scaled_product_is_that_of_rounded_activations(num_rows: int) -> None:
    if not cuda.has_scaled_product():
        pytest.skip("this GPU or this torch has no product of 8-bit floats with a scale per row")
    n, k = 1152, 896
    operands = triton_operands.float8(n, k, torch.bfloat16)
    values, scale = (part.cuda() for part in operands.before)
    x = random(num_rows, k, dtype=torch.bfloat16).cuda()

    assert cuda.takes_scaled(x, values, 0)
    result = cuda.scaled_product(x, values, scale, None)

    step = x.float().abs().amax(1, keepdim=True) / 448
    rounded = (x.float() / step).to(torch.float8_e4m3fn).double() * step.double()
    # Hopper's sums of 32 such products keep about 14 bits below the largest of them, perhaps 8 times the mean
    assert_product(result, rounded, operands.weight.cuda(), unit_in=2**-10, unit_out=1.01 * 2**-8)


def test_scaled_product_of_a_row_is_independent_of_the_batch() -> None:
    if not cuda.has_scaled_product():
        pytest.skip("this GPU or this torch has no product of 8-bit floats with a scale per row")
    operands = triton_operands.float8(1152, 896, torch.bfloat16)
    values, scale = (part.cuda() for part in operands.before)
    x = random(128, 896, dtype=torch.bfloat16).cuda()

    whole = cuda.scaled_product(x, values, scale, None)

    for part in (slice(0, 1), slice(5, 8), slice(30, 63)):
        torch.testing.assert_close(
            cuda.scaled_product(x[part], values, scale, None), whole[part], rtol=2**-7, atol=1e-2
        )
