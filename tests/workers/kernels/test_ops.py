"""What every op owes: fakes that agree, rows that do not touch each other, any leading dimensions, a bias."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.workers.kernels.bounds import random, random_codes
from workers.kernels import cpu_int4, int4_layout, ops

N, K = 48, 64
WEIGHT = torch.randint(-127, 128, (N, K), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
BLOCK = cpu_int4.block_rows() or int4_layout.BLOCK_ROWS
PACKED = int4_layout.pack(random_codes(16, N, K), BLOCK)
OFFSETS = (random(2, PACKED.shape[0] * BLOCK, 2) * 0.01).to(torch.bfloat16)
GRID = (random_codes(256, N, K), random(N, 2).abs(), random_codes(256, N, 2))
CODEBOOK = (random_codes(256, N * K // 2), torch.linspace(-1, 1, 16), random(N * K // 64).abs())
FLOAT8 = random(N, K).to(torch.float8_e4m3fn)
SCALE = random(N, 1).abs()
TILE_SCALE = SCALE[:6].reshape(3, 2)
INDEX = torch.arange(K) // 40

# op and its arguments, made from x and bias
CALLS: dict[str, Callable[[Tensor, Tensor | None], tuple[object, tuple[object, ...]]]] = {
    "int8": lambda x, bias: (torch.ops.slimserve.int8_linear, (x, WEIGHT, SCALE, bias)),
    "int4": lambda x, bias: (torch.ops.slimserve.int4_linear, (x, PACKED, OFFSETS, bias, N)),
    "grid": lambda x, bias: (torch.ops.slimserve.grid_linear, (x, *GRID, None, bias, 0)),
    "grid-index-a8": lambda x, bias: (torch.ops.slimserve.grid_linear, (x, *GRID, INDEX, bias, 8)),
    "codebook": lambda x, bias: (torch.ops.slimserve.codebook_linear, (x, *CODEBOOK, bias, 64, N)),
    "w8a8": lambda x, bias: (torch.ops.slimserve.w8a8_linear, (x, WEIGHT, SCALE, bias)),
    "llm_int8": lambda x, bias: (torch.ops.slimserve.llm_int8_linear, (x, WEIGHT, SCALE[:, 0], bias, 2.0)),
    "float8": lambda x, bias: (torch.ops.slimserve.float8_linear, (x, FLOAT8, SCALE, bias, 0, True)),
    "float8-tiles": lambda x, bias: (torch.ops.slimserve.float8_linear, (x, FLOAT8, TILE_SCALE, bias, 32, False)),
}  # fmt: skip
CHECKS_WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# torch 2.13's schema check multiplies the arguments, which it cannot do with E4M3 numbers
CHECKS = ("test_schema", *CHECKS_WITHOUT_SCHEMA)
EVERY = pytest.mark.parametrize("name", list(CALLS))


def call(name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
    op, arguments = CALLS[name](x, bias)
    return op(*arguments)


@EVERY
def test_opcheck(name: str) -> None:
    for bias in (None, random(N)):
        op, arguments = CALLS[name](random(3, K), bias)
        torch.library.opcheck(op.default, arguments, test_utils=CHECKS_WITHOUT_SCHEMA if "float8" in name else CHECKS)


@EVERY
def test_fake_knows_shape_and_dtype(name: str) -> None:
    op, arguments = CALLS[name](random(2, 3, K, dtype=torch.bfloat16), None)

    fake = op(*(argument.to("meta") if isinstance(argument, Tensor) else argument for argument in arguments))

    assert (fake.shape, fake.dtype) == ((2, 3, N), torch.bfloat16)


@EVERY
def test_bias_and_leading_dimensions(name: str) -> None:
    x, bias = random(6, K), torch.linspace(-100, 100, N)

    result = call(name, x.reshape(2, 3, K), bias)

    torch.testing.assert_close(result.reshape(6, N) - bias, call(name, x), atol=1e-3, rtol=0)


@EVERY
@pytest.mark.parametrize("num_rows", [0, 1, 40])
def test_any_number_of_strided_rows(name: str, num_rows: int) -> None:
    x = random(80, K)[: 2 * num_rows : 2]

    result = call(name, x)

    assert result.shape == (num_rows, N)
    assert torch.equal(result, call(name, x.clone()))


@EVERY
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_rows_do_not_touch_each_other(name: str, poison: float) -> None:
    x = random(6, K)
    poisoned = x.clone()
    poisoned[2, 5] = poison

    result = call(name, poisoned)

    keep = [0, 1, 3, 4, 5]
    # equal but for the order of sums, where outliers add columns
    torch.testing.assert_close(result[keep], call(name, x)[keep], rtol=1e-5, atol=1e-3)
    assert not result[2].isfinite().any()


def test_kernel_is_named_per_device() -> None:
    cpu = torch.device("cpu")

    assert ops.kernel("grid_linear", cpu) == ops.EMULATED
    assert ops.kernel("int4_linear", torch.device("meta")) == ops.EMULATED
    assert ops.kernel("int4_linear", cpu) in ("int4pack", ops.EMULATED)
    assert ops.product_dtype("int4_linear", cpu) is (
        torch.bfloat16 if ops.kernel("int4_linear", cpu) == "int4pack" else torch.float32
    )
