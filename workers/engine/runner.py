"""What every lane of the engine implements: rows in, logits out.

The scheduler owns which page or slot belongs to whom; a runner owns the tensors behind them.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workers.engine.sequence import Row, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGeometry:
    """The pools that a runner has allocated.

    num_pages pages of page_size tokens each; num_slots recurrent states (0 = the model has none).
    prefers_runs: attention is faster over consecutive pages (a view on the CPU instead of a gather).
    supports_prefix_cache: False where state cannot be shared by pages (recurrent layers, the compat lane).
    supports_chunks: False where a prompt must enter the model in one row.
    """

    num_pages: int
    page_size: int
    num_slots: int = 0
    prefers_runs: bool = False
    supports_prefix_cache: bool = True
    supports_chunks: bool = True


class Runner(Protocol):
    """One model behind one lane."""

    vocab_size: int
    geometry: CacheGeometry

    def forward(self, rows: Many[Row]) -> list[Tensor]:
        """Run one step and store keys, values and states of every row.

        Returns one tensor per row, in order, on the model's device, floating point: (1, vocab_size) for the row's
        last position, or (row.num_tokens, vocab_size) where the row wants all logits. Does not change the sequences.
        Calling it again with the same rows gives the same result: a step that raised can be re-run in parts.
        Raises whatever the model raises; nothing has been committed then.
        """
        ...

    def release(self, sequence: Sequence) -> None:
        """Forget what the runner itself holds for a sequence that ended or was preempted."""
        ...
