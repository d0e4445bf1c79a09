"""Who owns which page of the KV pool, and which full pages can be shared by a common prefix.

Only numbers of pages live here; the tensors behind them belong to the runner. A page is free (empty), owned
(referenced by running sequences) or idle (unreferenced, but full and findable by its hash until it is needed).

The hash of a full page covers its tokens and all before them. It is a keyed 128-bit BLAKE2b: two prompts share a
page only if they are equal, and nobody outside can construct a collision.
"""

import os
from array import array
from collections import OrderedDict
from hashlib import blake2b

import numpy as np

from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Sequence

_HASH_BYTES = 16
# How many times the need may be evicted to get consecutive pages, before scattered ones are taken.
_EVICTION_ROUNDS = 3


class PagePool:
    """Page allocator and prefix cache.

    Prefers consecutive pages for a sequence: on the CPU attention over a run is a view, over scattered pages a copy.
    """

    def __init__(self, geometry: CacheGeometry) -> None:
        self._page_size = geometry.page_size
        self._num_pages = geometry.num_pages
        self._prefers_runs = geometry.prefers_runs
        self._has_prefix_cache = geometry.supports_prefix_cache
        self._is_free = np.ones(geometry.num_pages, dtype=np.bool_)
        self._num_free = geometry.num_pages
        self._references = [0] * geometry.num_pages
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._key = os.urandom(_HASH_BYTES)

    @property
    def num_available(self) -> int:
        """Pages that a sequence can get: free ones, and idle ones by forgetting what they hold."""
        return self._num_free + len(self._idle)

    @property
    def usage_ratio(self) -> float:
        """Share of the pool that running sequences own, 0..1."""
        return 1 - self.num_available / self._num_pages if self._num_pages else 0.0

    def admit(self, sequence: Sequence, *, num_spare: int, use_cache: bool) -> bool:
        """Give a sequence all pages for its present tokens if `num_spare` more remain; else change nothing.

        Sets block_table and num_computed_tokens (what the prefix cache already holds). The last token is always left
        to compute: its logits are needed.
        """
        hits = self._find_prefix(sequence) if use_cache and self._has_prefix_cache else []
        num_new = self._pages_for(sequence.num_tokens) - len(hits)
        num_idle_hits = sum(self._references[page] == 0 for page in hits)
        if num_new + num_spare > self.num_available - num_idle_hits:
            return False
        for page in hits:
            self._idle.pop(page, None)
            self._references[page] += 1
        sequence.block_table = hits + self._take(num_new, after=hits[-1] if hits else None)
        sequence.num_computed_tokens = len(hits) * self._page_size
        return True

    def extend(self, sequence: Sequence) -> bool:
        """Give a sequence the pages it lacks for its present tokens; False, and nothing changed, if there are none."""
        num_new = self._pages_for(sequence.num_tokens) - len(sequence.block_table)
        if num_new <= 0:
            return True
        if num_new > self.num_available:
            return False
        sequence.block_table += self._take(num_new, after=sequence.block_table[-1])
        return True

    def index(self, sequence: Sequence, start: int) -> None:
        """Make pages findable that became full as num_computed_tokens grew from `start` to its present value."""
        if not self._has_prefix_cache:
            return
        num_full = sequence.num_computed_tokens // self._page_size
        for position in range(start // self._page_size, num_full):
            digest = self._hashes(sequence, num_full)[position]
            page = sequence.block_table[position]
            if digest not in self._page_of and page not in self._hash_of:
                self._page_of[digest] = page
                self._hash_of[page] = digest

    def release(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Take back all pages of a sequence.

        is_sound: False if what it wrote must not be found by others (its logits were not finite).
        The tail goes first into the idle pages, so it is also evicted first: heads are shared more often.
        """
        for page in reversed(sequence.block_table):
            if not is_sound:
                self._forget(page)
            self._references[page] -= 1
            if self._references[page] == 0:
                self._retire(page)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def _retire(self, page: int) -> None:
        if page in self._hash_of:
            self._idle[page] = None
        else:
            self._is_free[page] = True
            self._num_free += 1

    def _forget(self, page: int) -> None:
        digest = self._hash_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        num_usable = (sequence.num_tokens - 1) // self._page_size
        pages: list[int] = []
        for digest in self._hashes(sequence, num_usable)[:num_usable]:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def _hashes(self, sequence: Sequence, num_pages: int) -> list[bytes]:
        """Chained digests of at least the first `num_pages` full pages, computed once per sequence."""
        hashes = sequence.page_hashes
        while len(hashes) < num_pages:
            start = len(hashes) * self._page_size
            tokens = array("q", sequence.token_ids(start, start + self._page_size)).tobytes()
            before = hashes[-1] if hashes else b""
            hashes.append(blake2b(before + tokens, digest_size=_HASH_BYTES, key=self._key).digest())
        return hashes

    def _take(self, count: int, *, after: int | None) -> list[int]:
        """`count` pages, of which the caller knows that they are available, consecutive to `after` where possible."""
        pages: list[int] = []
        while len(pages) < count and after is not None and self._can_follow(after + 1):
            after += 1
            pages.append(after)
            self._claim(after)
        if len(pages) < count:
            pages += self._take_run(count - len(pages))
        return pages

    def _can_follow(self, page: int) -> bool:
        return page < self._num_pages and bool(self._is_free[page] or (self._prefers_runs and page in self._idle))

    def _take_run(self, count: int) -> list[int]:
        """`count` pages from the middle of the longest free run, so that both neighbours can grow."""
        self._evict(count - self._num_free)
        starts, lengths = self._free_runs()
        for _ in range(_EVICTION_ROUNDS if self._prefers_runs else 0):
            if lengths[0] >= count or not self._idle:
                break
            self._evict(count)
            starts, lengths = self._free_runs()
        pages: list[int] = []
        for start, length in zip(starts, lengths, strict=True):
            slack = length - (count - len(pages))
            first = start + slack // 2 if slack > 0 and start > 0 else start
            pages += range(first, min(first + count - len(pages), start + length))
            if len(pages) == count:
                break
        for page in pages:
            self._claim(page)
        return pages

    def _free_runs(self) -> tuple[list[int], list[int]]:
        """First page and length of every run of free pages, the longest first."""
        edges = np.diff(self._is_free.astype(np.int8), prepend=0, append=0)
        starts = np.flatnonzero(edges == 1)
        lengths = np.flatnonzero(edges == -1) - starts
        order = np.argsort(-lengths, kind="stable")
        return starts[order].tolist(), lengths[order].tolist()

    def _claim(self, page: int) -> None:
        if page in self._idle:
            del self._idle[page]
            self._forget(page)
        else:
            self._is_free[page] = False
            self._num_free -= 1
        self._references[page] = 1

    def _evict(self, count: int) -> None:
        """Free up to `count` idle pages, the least recently used first."""
        for _ in range(min(count, len(self._idle))):
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            self._retire(page)
