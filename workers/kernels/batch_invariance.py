"""Whether a product gives a row the same numbers, to the bit, alone and among any others.

torch promises that of none of its ops: how many rows there are decides which loop runs and in which order it sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# One row, the rest of a block of every size up to 8, several blocks, and as many as a prompt has.
_NUM_ROWS = (1, 2, 3, 5, 8, 9, 17, 40)
CHECK_ROWS = 130


def is_batch_invariant(product: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    """True if the first rows have the same products alone as among all `rows`, (CHECK_ROWS, K)."""
    together = product(rows)
    return all(torch.equal(product(rows[:number]), together[:number]) for number in _NUM_ROWS)
