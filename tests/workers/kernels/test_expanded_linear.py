"""grid_linear, codebook_linear and float8_linear against formulas in fp64 that share no code with them."""

import math

import pytest
import torch
from torch import Tensor

from tests.workers.kernels.bounds import BF16, assert_product, random, random_codes
from workers.kernels import cpu_expanded, cuda, ops, reference, tiles

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
ROWS = pytest.mark.parametrize("rows", [1, 9])
SIDES = pytest.mark.parametrize("side", [ops, reference, cuda], ids=["cpu", "definition", "cuda"])


def units(dtype: torch.dtype) -> dict[str, float]:
    """Weights rounded to x's dtype by a few operations, sums once."""
    unit = torch.finfo(dtype).eps / 2
    return {"unit_in": 4 * unit + 2**-21, "unit_out": 2.1 * unit}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last one ragged, at the sizes of tests."""
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", 512)


@SIDES
@DTYPES
@ROWS
@pytest.mark.parametrize("ragged", [False, True], ids=["runs", "index"])
def test_grid(side: object, dtype: torch.dtype, rows: int, ragged: bool) -> None:
    codes, zero = random_codes(256, 37, 48), random_codes(256, 37, 3, seed=1)
    scale = random(37, 3, seed=2).abs() * 0.01
    groups = torch.tensor([0] * 20 + [2] * 18 + [1] * 10) if ragged else torch.arange(48) // 16
    x = random(rows, 48, dtype=dtype)

    result = side.grid_linear(x, codes, scale, zero, groups if ragged else None, None, 0)

    weight = (codes.double() - zero.double()[:, groups]) * scale.double()[:, groups]
    assert result.dtype is dtype
    assert_product(result, x, weight, **units(dtype))


@SIDES
@ROWS
def test_grid_with_int8_activations(side: object, rows: int) -> None:
    codes, zero = random_codes(256, 37, 48), random_codes(256, 37, 3, seed=1)
    scale = random(37, 3, seed=2).abs() * 0.01
    x = random(rows, 48)

    result = side.grid_linear(x, codes, scale, zero, None, None, 8)

    groups = torch.arange(48) // 16
    weight = (codes.double() - zero.double()[:, groups]) * scale.double()[:, groups]
    step = x.abs().amax(1, keepdim=True) / 127
    rounded = torch.round(x / step).double() * step.double()
    assert_product(result, rounded, weight, **units(torch.float32))
    assert (result.double() - x.double() @ weight.T).abs().max() > 1e-3


# block size, outputs, columns: blocks inside rows, across rows, an odd number of weights, a part of a block at the end
CODEBOOK_SHAPES = [(64, 37, 128), (64, 37, 96), (64, 5, 7), (256, 37, 65), (128, 1, 2)]


def codebook_operands(block_size: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes = random_codes(16, n * k)
    codebook = torch.linspace(-1, 1, 16) ** 3
    absmax = random(math.ceil(n * k / block_size), seed=3).abs() + 0.1
    padded = torch.cat((codes, torch.zeros(n * k % 2, dtype=torch.uint8)))
    weight = codebook.double()[codes.long()] * absmax.double().repeat_interleave(block_size)[: n * k]
    return padded[0::2] * 16 + padded[1::2], codebook, absmax, weight.reshape(n, k)


@SIDES
@DTYPES
@ROWS
@pytest.mark.parametrize("shape", CODEBOOK_SHAPES, ids=["x".join(map(str, shape)) for shape in CODEBOOK_SHAPES])
def test_codebook(side: object, dtype: torch.dtype, rows: int, shape: tuple[int, int, int]) -> None:
    block_size, n, k = shape
    packed, codebook, absmax, weight = codebook_operands(*shape)
    x = random(rows, k, dtype=dtype)

    result = side.codebook_linear(x, packed, codebook, absmax, None, block_size, n)

    assert result.dtype is dtype
    assert_product(result, x, weight, **units(dtype))


def float8_operands(tile: int) -> tuple[Tensor, Tensor, Tensor]:
    values = (random(37, 48) * 100).to(torch.float8_e4m3fn)
    if not tile:
        scale = random(37, 1, seed=4).abs() + 0.1
        return values, scale, values.double() * scale.double()
    scale = random(math.ceil(37 / tile), math.ceil(48 / tile), seed=4).abs() + 0.1
    rows, columns = torch.arange(37) // tile, torch.arange(48) // tile
    return values, scale, values.double() * scale.double()[rows][:, columns]


@SIDES
@DTYPES
@ROWS
@pytest.mark.parametrize("tile", [0, 16, 20], ids=["row", "tile", "ragged-tile"])
def test_float8_weights(side: object, dtype: torch.dtype, rows: int, tile: int) -> None:
    values, scale, weight = float8_operands(tile)
    # small: sums of a few hundred fp16 products of a hundred pass 65,504 otherwise
    x = random(rows, 48, dtype=dtype) * 0.01

    result = side.float8_linear(x, values, scale, None, tile, False)

    assert result.dtype is dtype
    assert_product(result, x, weight, **units(dtype))


@SIDES
@ROWS
@pytest.mark.parametrize("tile", [0, 16], ids=["row", "tile"])
def test_float8_activations(side: object, rows: int, tile: int) -> None:
    values, scale, weight = float8_operands(tile)
    x = random(rows, 48)

    result = side.float8_linear(x, values, scale, None, tile, True)

    step = x.abs().amax(1, keepdim=True) / 448
    rounded = (x / step).to(torch.float8_e4m3fn).double() * step.double()
    assert_product(result, rounded, weight, **units(torch.float32))
    assert (result.double() - x.double() @ weight.T).abs().max() > 1e-2


def test_widening_equals_the_cast_for_every_number() -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    values = bits[(bits & 0x7F) != 0x7F].view(torch.float8_e4m3fn)

    assert torch.equal(cpu_expanded.widen_float8(values), values.to(torch.float32))


def test_bf16_product_rounds_each_factor_once() -> None:
    weight = random(37, 48)

    wide = tiles.tiled_product(random(9, 48), 37, 10, lambda start, end: weight[start:end])
    short = tiles.tiled_product(random(9, 48).bfloat16(), 37, 10, lambda start, end: weight[start:end])

    assert_product(wide, random(9, 48), weight.double(), unit_in=0, unit_out=2**-23)
    assert_product(short, random(9, 48).bfloat16(), weight.double(), unit_in=1.1 * BF16, unit_out=1.1 * BF16)
