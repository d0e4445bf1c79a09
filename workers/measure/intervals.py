"""95 % confidence intervals of means over the tokens of a text, by resampling blocks of neighbours.

Neighbouring tokens are not independent: a name that the model did not expect is unexpected again. So whole blocks are
drawn with replacement (the block bootstrap; Kunsch 1989), which keeps what holds inside a block; 64 tokens are about
three sentences. The interval says how far the number depends on which parts of this text were taken. It says nothing
of other texts.
"""

import torch
from torch import Tensor

BLOCK_TOKENS = 64
_NUM_RESAMPLES = 1000
_LEVEL = 0.95


def mean_interval(values: Tensor) -> tuple[float, float] | None:
    """The interval of the mean of values (T,), in their order in the text; None with fewer than two whole blocks.

    The last, shorter block counts as a block of its own. The same values always give the same interval.
    """
    if values.shape[0] < 2 * BLOCK_TOKENS:
        return None
    blocks = torch.split(values.to(torch.float64), BLOCK_TOKENS)
    sums = torch.stack([block.sum() for block in blocks])
    counts = torch.tensor([block.shape[0] for block in blocks], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(blocks), (_NUM_RESAMPLES, len(blocks)), generator=generator)
    means = sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1)
    tail = (1 - _LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
