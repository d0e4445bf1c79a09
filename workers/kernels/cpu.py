"""The ops on the CPU.

A product with one row reads every weight once and computes little: it costs what its bytes cost, so int8 can be twice
as fast as bf16. torch has one op that reads int8 weights directly, `_weight_int8pack_mm`. It is made for bf16
activations (fp32 ones take a scalar path, 6 to 9 times slower than bf16).

Rows: where a packed op is in use, it is for any number of rows, although expanding the weight to bf16 and one ordinary
product take less time from about 24 rows on (Zen 5, 256 rows: 0.4 of it at 4864 x 896, 0.7 at 4096 x 4096). What a
request gets must not depend on who else is in its step, and two products that round to bf16 differ, however alike they
are: a sum taken in another order now and then falls to the other side of a rounding, the next layer's roundings spread
that to every number, and after a few layers the answers are as far apart as bf16 makes any two. With 4-bit weights and
5 layers that was 0.2 nats in a sentence's log-likelihood. The packed ops take the terms of each sum in one order,
whatever the number of rows; `packed_op_wins` sees to it.

Precision: x is rounded to bf16, and the product too. For fp32 activations this costs a relative error of up to 2**-8
per number, about 0.1 % rms per output. int8 weights themselves stand at 0.8 % (a step of max|w| / 127, with max|w| near
3.7 sigma, has an rms rounding error of 3.7 / 127 / sqrt(12) sigma), so the total grows by a fiftieth. Models that are
loaded for products in fp32 have other layers: see `formats.build`.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from workers.device import cpu_has_fast_bf16
from workers.kernels.batch_invariance import CHECK_ROWS, is_batch_invariant
from workers.kernels.timing import is_worth_it

# The op reads 32 columns at a time and does not look where a row ends: with other widths it read past the end of the
# weight (infinities, or a segmentation fault, torch 2.13).
_PACKED_COLUMNS = 32
# 2 MiB of weights: more than an L1 or L2 share, so that the check is bound by reading as a model is.
_CHECK_SHAPE = (2048, 1024)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.int8_linear` for CPU tensors, within the rounding of bf16 that the module's docstring describes."""
    num_outputs, num_columns = weight.shape
    rows = x.reshape(-1, num_columns)
    has_packed = packed_op_wins()
    if has_packed and num_columns % _PACKED_COLUMNS == 0 and rows.shape[0]:
        product = packed_product(rows, weight, scale)
    else:
        product = dequantized_product(rows, weight, scale, round_to_bf16=has_packed)
    if bias is not None:
        product = product + bias.to(x.dtype)
    return product.reshape(*x.shape[:-1], num_outputs)


def packed_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x (q * s)^T by torch's int8 op. rows: (M, K); K must be a multiple of 32. Returns (M, N) in the rows' dtype."""
    x = rows.to(torch.bfloat16).contiguous()
    if scale.dtype is torch.bfloat16:
        return torch._weight_int8pack_mm(x, weight, scale.reshape(-1)).to(rows.dtype)
    # The op wants scales in bf16. Rounding foreign fp32 scales would shift whole channels, so they come afterwards.
    ones = torch.ones(weight.shape[0], dtype=torch.bfloat16)
    return torch._weight_int8pack_mm(x, weight, ones).to(rows.dtype).mul_(scale.reshape(-1))


def dequantized_product(rows: Tensor, weight: Tensor, scale: Tensor, *, round_to_bf16: bool) -> Tensor:
    """x q^T, then times s: every int8 is exact in bf16. rows: (M, K). Returns (M, N) in the rows' dtype."""
    dtype = torch.bfloat16 if cpu_has_fast_bf16() else torch.float32
    x = rows.to(torch.bfloat16) if round_to_bf16 else rows
    return functional.linear(x.to(dtype), weight.to(dtype)).to(rows.dtype).mul_(scale.reshape(-1))


@functools.cache
def packed_op_wins() -> bool:
    """Whether torch's int8 op is worth using on this machine, tried once, on first use (about 20 ms).

    It must agree with expanding the weight, give a row the same numbers alone and among others, and not be slower for
    one row. Expanding is never more than a few times slower than a plain product, so an op with only a scalar path here
    loses; where it has a fast path it wins by 2 to 3 times.
    One fixed shape and not the model's own: on a shape of a few microseconds noise would decide, and a restart could
    change the last digits of every answer.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, _CHECK_SHAPE, dtype=torch.int8, generator=generator)
    scale = torch.full((_CHECK_SHAPE[0], 1), 1 / 128, dtype=torch.bfloat16)
    rows = torch.randn(CHECK_ROWS, _CHECK_SHAPE[1], generator=generator).to(torch.bfloat16)

    def packed(x: Tensor) -> Tensor:
        return packed_product(x, weight, scale)

    def dequantized(x: Tensor) -> Tensor:
        return dequantized_product(x, weight, scale, round_to_bf16=True)

    # Outputs are sums of 1,024 terms near 0.6, so about 18 in size and 80 at most: one bf16 step is 0.5 there.
    if not torch.allclose(packed(rows[:1]), dequantized(rows[:1]), rtol=2**-6, atol=0.5):
        return False
    return is_batch_invariant(packed, rows) and is_worth_it(lambda: packed(rows[:1]), lambda: dequantized(rows[:1]))
