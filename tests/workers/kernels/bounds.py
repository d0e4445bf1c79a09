"""How far a product may be from the exact one, from the roundings that an implementation admits."""

import torch
from torch import Tensor

# rounding to a dtype moves a number by at most this share of it
BF16 = 2**-9
FP32 = 2**-24


def assert_product(result: Tensor, x: Tensor, weight: Tensor, *, unit_in: float, unit_out: float) -> None:
    """result = x @ weight^T in fp64, but for a relative `unit_in` of each term and `unit_out` of each sum.

    result: (M, N). x: (M, K). weight: (N, K), fp64.
    """
    expected = x.double() @ weight.T
    magnitude = x.double().abs() @ weight.abs().T
    bound = magnitude * (unit_in + 2 * weight.shape[1] * FP32) + expected.abs() * unit_out + 1e-30
    excess = ((result.double() - expected).abs() - bound).max()
    assert excess <= 0, f"{excess:.3g} past the bound"


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_codes(limit: int, *shape: int, seed: int = 0) -> Tensor:
    """Seeded uint8 codes, 0 .. limit - 1."""
    return torch.randint(0, limit, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
