"""Plays scheduler and sampler for a runner: pages by hand, greedy tokens, preemption on request."""

import random

from workers.engine.runner import Runner
from workers.engine.sequence import Row, Sequence
from workers.protocol.specs import SamplingParams


class Driver:
    """Runs prompts to `num_tokens` greedy tokens each, all in the same steps.

    chunk: prompt tokens per step and sequence (None = whole). is_scattered: pages are handed out in random order, so
    that no sequence has a run. preempt_at: number of the step before which every second sequence loses its pages.
    """

    def __init__(
        self, runner: Runner, *, chunk: int | None = None, is_scattered: bool = False, preempt_at: int | None = None
    ) -> None:
        self.runner = runner
        self.chunk = chunk if runner.geometry.supports_chunks else None
        self.preempt_at = preempt_at
        self.free_pages = list(range(runner.geometry.num_pages))
        if is_scattered:
            random.Random(0).shuffle(self.free_pages)
        self.free_slots = list(range(runner.geometry.num_slots))

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """The greedy continuation of each prompt."""
        sequences = [self.sequence(prompt, num_tokens) for prompt in prompts]
        step = 0
        while running := [s for s in sequences if len(s.output_ids) < num_tokens]:
            if step == self.preempt_at:
                for sequence in reversed(running[::2]):
                    self.release(sequence)
            self.step(running)
            step += 1
        for sequence in sequences:
            self.release(sequence)
        return [sequence.output_ids for sequence in sequences]

    def sequence(self, prompt: list[int], num_tokens: int) -> Sequence:
        """A new sequence without pages."""
        return Sequence(request_id=str(prompt), prompt_ids=prompt, params=SamplingParams(max_tokens=num_tokens))

    def step(self, sequences: list[Sequence]) -> None:
        """One forward, and one greedy token for each sequence whose prompt is in."""
        rows = [self.row(sequence) for sequence in sequences]
        ends = [row.is_last_chunk for row in rows]
        for row, is_last, logits in zip(rows, ends, self.runner.forward(rows), strict=True):
            row.sequence.num_computed_tokens += row.num_tokens
            if is_last:
                row.sequence.output_ids.append(int(logits[-1].argmax()))

    def row(self, sequence: Sequence) -> Row:
        """The next row of a sequence, with pages and slot for it."""
        remaining = sequence.num_tokens - sequence.num_computed_tokens
        row = Row(sequence=sequence, num_tokens=min(remaining, self.chunk or remaining))
        while len(sequence.block_table) * self.runner.geometry.page_size < row.end:
            sequence.block_table.append(self.free_pages.pop(0))
        if self.runner.geometry.num_slots and sequence.slot is None:
            sequence.slot = self.free_slots.pop(0)
        return row

    def release(self, sequence: Sequence) -> None:
        """Take everything back, as preemption and the end of a sequence do."""
        self.runner.release(sequence)
        self.free_pages.extend(reversed(sequence.block_table))
        if sequence.slot is not None:
            self.free_slots.append(sequence.slot)
        sequence.block_table, sequence.slot, sequence.num_computed_tokens = [], None, 0
