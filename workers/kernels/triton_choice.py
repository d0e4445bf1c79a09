"""The ops on CUDA: by a Triton kernel that reads the stored codes, where this machine has one that is worth it.

Otherwise, and for arguments that a kernel does not take (many rows, fp32), by plain torch (`cuda`). Triton is an
optional package and needs a C compiler: it is imported on first use, on machines with CUDA only, and a kernel that
cannot be built here is logged and not used.
"""

import functools
import importlib
import logging
import subprocess
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from workers.kernels import cuda, reference
from workers.kernels.timing import is_worth_it

logger = logging.getLogger(__name__)

_MODULES = {
    "int8_linear": "workers.kernels.triton_int8",
    "int4_linear": "workers.kernels.triton_int4",
    "codebook_linear": "workers.kernels.triton_codebook",
    "float8_linear": "workers.kernels.triton_float8",
}
NAMES = {op: module.rpartition(".")[2].replace("_", "-") for op, module in _MODULES.items()}
# A kernel's result and the definition's, both rounded to bf16, differ by half a unit each (2**-9), for codebooks by as
# much again in every term; a wrong index or scale makes the two unrelated, an error near 1.
_TOLERANCE = 2**-6


class Kernel(Protocol):
    """What each of the Triton modules offers. Arguments are those of the op."""

    def sample(self, device: torch.device, generator: torch.Generator) -> tuple[Any, ...]:
        """Arguments for the check at start-up: one bf16 row, weights that are larger than a launch is long."""

    def takes(self, *arguments: Any) -> bool:
        """Whether `product` can be used for these arguments."""

    def product(self, *arguments: Any) -> Tensor:
        """The op, by the kernel."""


def implementation(op: str) -> Callable[..., Tensor]:
    """What computes an op on CUDA, chosen anew for each call."""
    plain: Callable[..., Tensor] = getattr(cuda, op)

    def run(*arguments: Any) -> Tensor:
        kernel = find(op)
        if kernel is not None and kernel.takes(*arguments):
            return kernel.product(*arguments)
        return plain(*arguments)

    return run


def wins(op: str) -> bool:
    """Whether an op has a Triton kernel that is in use on this machine."""
    return find(op) is not None


@functools.cache
def find(op: str) -> Kernel | None:
    """The kernel of an op if it runs here, is right and is worth it; tried once, on first use.

    Takes seconds, in which Triton compiles, and must not be the first thing in the capture of a CUDA graph.
    """
    # HIP calls itself "cuda" too; parts of the kernels are written for NVIDIA's
    if op not in _MODULES or not torch.cuda.is_available() or torch.version.hip:
        return None
    try:
        import triton
    except ImportError:
        logger.warning("triton is not installed: %s expands its weights for each product", op)
        return None
    try:
        kernel = cast(Kernel, importlib.import_module(_MODULES[op]))
        passes = passes_check(kernel, op, torch.device("cuda", torch.cuda.current_device()))
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError, triton.errors.TritonError) as error:
        logger.warning("the Triton kernel of %s does not run here (%s): %s", op, type(error).__name__, error)
        return None
    return kernel if passes else None


def passes_check(kernel: Kernel, op: str, device: torch.device) -> bool:
    """Whether a kernel agrees with the op's definition and is not slower than plain torch."""
    arguments = kernel.sample(device, torch.Generator(device).manual_seed(0))
    expected = getattr(reference, op)(*arguments).to(torch.float32)
    error = (kernel.product(*arguments).to(torch.float32) - expected).norm() / expected.norm()
    # not NaN either
    if not bool(error < _TOLERANCE):
        logger.error("the Triton kernel of %s is wrong on this machine, by a relative %.3g: not used", op, float(error))
        return False

    def timed(product: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            result = product(*arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return result

        return run

    if is_worth_it(timed(kernel.product), timed(getattr(cuda, op))):
        return True
    logger.warning("the Triton kernel of %s is slower than expanding its weights on this machine: not used", op)
    return False
