"""`float8_linear` on CUDA by the kernel of `triton_bytes`: E4M3 weights, activations in x's dtype.

Where activations are rounded to E4M3 the tensor cores can multiply both as they are (`cuda.scaled_product`), which has
precedence; otherwise rounded activations come here in x's dtype, as in the plain path.
"""

import torch
from torch import Tensor

from workers.kernels import cuda, triton_bytes


def sample(device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int, bool]:
    """Arguments of `product` for the check at start-up: one row, 32 MiB of weights."""
    values = torch.randn(8192, 4096, device=device, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(8192, 1, device=device, generator=generator)
    return torch.randn(1, 4096, device=device, generator=generator).to(torch.bfloat16), values, scale, None, 0, False


def takes(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> bool:
    """See `triton_bytes.takes`."""
    is_scaled = has_dynamic_activations and cuda.takes_scaled(x, values, tile)
    return not is_scaled and triton_bytes.takes(x, tile)


def product(
    x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, tile: int, has_dynamic_activations: bool
) -> Tensor:
    """`reference.float8_linear` for arguments that `takes` accepts; rounded activations are in x's dtype."""
    seen = cuda.round_activations(x) if has_dynamic_activations else x
    return triton_bytes.product(seen, values, scale, bias, tile)
