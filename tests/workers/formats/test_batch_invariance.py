"""What a row is multiplied to does not depend on which rows, and how many, are multiplied with it."""

from collections.abc import Callable

import pytest
import torch

from tests.workers.formats.stored_weights import CASES, CPU, K
from tests.workers.kernels.bounds import BF16, FP32, random
from workers.formats.build import build_linear
from workers.formats.codes import Codes

# Products that round sums to bf16 also where activations are fp32, or activations to int8: what is left of a difference
# in the last digit of fp32 grows in the layers above, so there must be none.
EXACT = ("int4pack", "int8pack", "int_mm")
NUM_ROWS = 300


@pytest.mark.parametrize("is_unrounded", [False, True], ids=["fast", "unrounded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("make", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_row_is_the_same_alone_and_among_others(
    make: Callable[[], Codes], dtype: torch.dtype, is_unrounded: bool
) -> None:
    layer = build_linear(make(), None, dtype=dtype, device=CPU, is_unrounded=is_unrounded)
    x = random(NUM_ROWS, K, dtype=dtype)
    together = layer(x)
    # Sums of K terms in fp32, in any two orders. In bf16 up to two roundings follow (before a scale and after it), and
    # a sum on the other side of a rounding ends a whole unit away, 2 * BF16.
    magnitude = x.double().abs() @ layer.dequantize().double().abs().T
    last_digits = 2 * 2 * BF16 * together.double().abs() if dtype is torch.bfloat16 else 0
    bound = magnitude * 2 * K * FP32 + last_digits
    if layer.kernel in EXACT and layer.op != "llm_int8_linear":
        bound = torch.zeros_like(magnitude)

    for first, last in ((0, 1), (0, 2), (0, 8), (0, 9), (0, 33), (20, 21), (100, 164), (250, 300)):
        part = slice(first, last)
        difference = (layer(x[part]).double() - together[part].double()).abs()
        assert (difference <= bound[part]).all(), f"rows {first} to {last}: {difference.max():.3g}"
