"""`int8_linear` on CUDA by the kernel of `triton_bytes`."""

import torch
from torch import Tensor

from workers.kernels import triton_bytes


def sample(device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Arguments of `product` for the check at start-up: one row, 32 MiB of weights."""
    weight = torch.randint(-127, 128, (8192, 4096), dtype=torch.int8, device=device, generator=generator)
    scale = torch.rand(8192, 1, device=device, generator=generator)
    return torch.randn(1, 4096, device=device, generator=generator).to(torch.bfloat16), weight, scale, None


def takes(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> bool:
    """See `triton_bytes.takes`."""
    return triton_bytes.takes(x, 0)


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`reference.int8_linear` for arguments that `takes` accepts; only the sum is rounded to x's dtype."""
    return triton_bytes.product(x, weight, scale, bias, 0)
