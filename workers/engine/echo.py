"""A deterministic stand-in model: it repeats the prompt, at a settable speed, inside the real engine loop.

For tests and load tests of everything around the model. Pages and slots are only counted, nothing is stored.
"""

import time
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from workers.engine.runner import CacheGeometry
from workers.engine.scheduler import is_decoding
from workers.engine.sequence import Row, Sequence
from workers.protocol.specs import EchoSpec

PAGE_SIZE = 16
# exp(-50) per other token: sampling at temperature 1 repeats the prompt as surely as greedy does.
_LOGIT = 50.0


class EchoRunner:
    """The token at position p is always prompt[p % len(prompt)], or, with repeats_after, so of the prompt's end."""

    def __init__(self, spec: EchoSpec, *, num_pages: int) -> None:
        self.vocab_size = spec.vocab_size
        self.geometry = CacheGeometry(num_pages=num_pages, page_size=PAGE_SIZE)
        self._spec = spec

    def forward(self, rows: Many[Row]) -> list[Tensor]:
        """One-hot logits per row, after the pause that a model of the asked speed would make for this step."""
        self._pause(rows)
        starts = [row.start if row.wants_all_logits else row.end - 1 for row in rows]
        next_ids = [
            self._token_at(row.sequence, position + 1)
            for row, start in zip(rows, starts, strict=True)
            for position in range(start, row.end)
        ]
        logits = torch.zeros(len(next_ids), self.vocab_size)
        logits[torch.arange(len(next_ids)), torch.tensor(next_ids)] = _LOGIT
        return list(torch.split(logits, [row.end - start for row, start in zip(rows, starts, strict=True)]))

    def release(self, sequence: Sequence) -> None:
        """Nothing is held."""

    def _token_at(self, sequence: Sequence, position: int) -> int:
        num_prompt_tokens = sequence.num_prompt_tokens
        start = 0
        marker = self._spec.repeats_after
        if marker is not None and marker in sequence.prompt_ids[:-1]:
            start = num_prompt_tokens - sequence.prompt_ids[::-1].index(marker)
        return sequence.prompt_ids[start + (position - num_prompt_tokens) % (num_prompt_tokens - start)]

    def _pause(self, rows: Many[Row]) -> None:
        finishes_prefill = any(row.is_last_chunk and not is_decoding(row.sequence) for row in rows)
        decodes = any(is_decoding(row.sequence) for row in rows)
        seconds = max(self._spec.ttft_s * finishes_prefill, self._spec.itl_s * decodes)
        if seconds > 0:
            time.sleep(seconds)
