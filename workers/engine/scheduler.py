"""Which sequences enter the next step, and who gives way when pages run out.

A step is all running decode rows, then prefill chunks up to a budget, or less than a page more. Both queues are in
order of arrival: waiting sequences are admitted first come, first served within a priority, and when a page is missing
the newest running sequence is put back and recomputed later, ahead of all that have not begun. So the oldest always
advances, and as every admitted sequence fits into the empty pool, all that have begun end.
"""

from collections import deque
from collections.abc import Callable

from workers.engine.chunking import ChunkPacer
from workers.engine.kv_cache import PagePool
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Row, Sequence

# Logits of every position: 256 rows of a 150,000-word vocabulary are 150 MB in fp32.
MAX_ALL_LOGITS_TOKENS = 256


class Scheduler:
    """Owns the two queues, the pages and the slots.

    release: called with a sequence that ended or was preempted, before its pages and its slot are taken back.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        *,
        max_num_seqs: int,
        pacer: ChunkPacer,
        release: Callable[[Sequence], None],
    ) -> None:
        self.pages = PagePool(geometry)
        self.pacer = pacer
        self.num_preemptions = 0
        self.num_prefix_hit_tokens = 0
        self._geometry = geometry
        self._max_num_seqs = max_num_seqs
        self._release = release
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_slots = list(range(geometry.num_slots))

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no pages: new or preempted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold pages."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, which the caller has found to fit into the empty pool, before those of larger priority."""
        place = len(self._waiting)
        while place > 0 and _may_wait_longer(self._waiting[place - 1], sequence.priority):
            place -= 1
        self._waiting.insert(place, sequence)

    def remove(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Forget a sequence that ended; see PagePool.release for is_sound."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._give_back(sequence, is_sound=is_sound)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Row]:
        """The rows of the next step; empty only if there is no sequence at all."""
        rows = self._decode_rows()
        num_decodes = len(rows)
        budget = self.pacer.num_tokens(has_decodes=num_decodes > 0)
        for sequence in self._running:
            if not is_decoding(sequence) and budget > 0:
                rows.append(self._prefill_row(sequence, budget))
                budget -= rows[-1].num_tokens
        while self._waiting and budget > 0:
            sequence = self._waiting[0]
            if not self._can_prefill(sequence, budget, is_first=len(rows) == num_decodes) or not self._admit(sequence):
                break
            rows.append(self._prefill_row(sequence, budget))
            budget -= rows[-1].num_tokens
        assert rows or not (self._waiting or self._running), "nothing runs: pages or slots were lost"
        return rows

    def _decode_rows(self) -> list[Row]:
        """A row for every decoding sequence, oldest first, preempting from the other end while pages are missing."""
        rows: list[Row] = []
        place = 0
        while place < len(self._running):
            sequence = self._running[place]
            if is_decoding(sequence) and self._make_room(sequence):
                rows.append(Row(sequence=sequence, num_tokens=1))
            place += 1
        return rows

    def _make_room(self, sequence: Sequence) -> bool:
        """Give a sequence its next page. False if it was the newest itself and had to go."""
        while not self.pages.extend(sequence):
            newest = self._running.pop()
            self._preempt(newest)
            if newest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._give_back(sequence, is_sound=True)
        # Not sent yet (that happens with the first token), so computed again.
        sequence.prompt_logprobs = []
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _give_back(self, sequence: Sequence, *, is_sound: bool) -> None:
        self._release(sequence)
        self.pages.release(sequence, is_sound=is_sound)
        if sequence.slot is not None:
            self._free_slots.append(sequence.slot)
            sequence.slot = None

    def _can_prefill(self, sequence: Sequence, budget: int, *, is_first: bool) -> bool:
        """Room for one more? A prompt that is over the budget and cannot be cut is the only one of its step."""
        if len(self._running) >= self._max_num_seqs:
            return False
        return self._geometry.supports_chunks or sequence.num_tokens <= budget or is_first

    def _admit(self, sequence: Sequence) -> bool:
        """Move the first waiting sequence to the running ones if its pages and its slot are there."""
        if self._geometry.num_slots and not self._free_slots:
            return False
        # A page for each running sequence stays back: what they need next must not preempt the newcomer at once.
        if not self.pages.admit(sequence, num_spare=len(self._running), use_cache=not wants_all_logits(sequence)):
            return False
        self._waiting.popleft()
        self._running.append(sequence)
        if self._geometry.num_slots:
            sequence.slot = self._free_slots.pop()
        self.num_prefix_hit_tokens += sequence.num_computed_tokens
        if not sequence.output_ids:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return True

    def _prefill_row(self, sequence: Sequence, budget: int) -> Row:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        wants_all = wants_all_logits(sequence)
        if not self._geometry.supports_chunks:
            return Row(sequence=sequence, num_tokens=num_left, wants_all_logits=wants_all)
        limit = min(budget, MAX_ALL_LOGITS_TOKENS) if wants_all else budget
        num_tokens = num_left if num_left <= limit else min(num_left, self._whole_pages(sequence, limit))
        return Row(sequence=sequence, num_tokens=num_tokens, wants_all_logits=wants_all)

    def _whole_pages(self, sequence: Sequence, limit: int) -> int:
        """Up to `limit` tokens that end where a page does, but always up to the next such place.

        Where a page is attended to in one piece, as on the CPU, a cut inside of it would change its numbers.
        """
        page_size, start = self._geometry.page_size, sequence.num_computed_tokens
        return max((start + limit) // page_size, start // page_size + 1) * page_size - start


def _may_wait_longer(waiting: Sequence, priority: int) -> bool:
    """True unless it is as urgent as that, or was preempted: its client has waited once and may be reading already."""
    return waiting.priority > priority and waiting.scheduled_at_s is None


def is_decoding(sequence: Sequence) -> bool:
    """True if only the newest sampled token is missing in the cache."""
    return bool(sequence.output_ids) and sequence.num_tokens - sequence.num_computed_tokens == 1


def wants_all_logits(sequence: Sequence) -> bool:
    """True while the log-probabilities of the prompt are still to be computed."""
    return sequence.params.prompt_logprobs is not None and not sequence.output_ids
