"""The page pool: nobody shares what is not equal, nothing is lost, runs stay runs."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.kv_cache import PagePool
from workers.engine.runner import CacheGeometry
from workers.engine.sequence import Sequence
from workers.protocol.specs import SamplingParams

PAGE_SIZE = 4


def sequence_of(tokens: list[int]) -> Sequence:
    return Sequence(request_id="r", prompt_ids=list(tokens), params=SamplingParams(max_tokens=100))


def pool_of(num_pages: int, *, prefers_runs: bool = True, supports_prefix_cache: bool = True) -> PagePool:
    return PagePool(
        CacheGeometry(
            num_pages=num_pages,
            page_size=PAGE_SIZE,
            prefers_runs=prefers_runs,
            supports_prefix_cache=supports_prefix_cache,
        )
    )


def admit(pool: PagePool, tokens: list[int], *, use_cache: bool = True) -> Sequence:
    sequence = sequence_of(tokens)
    assert pool.admit(sequence, num_spare=0, use_cache=use_cache)
    return sequence


def compute(pool: PagePool, sequence: Sequence) -> None:
    """Pretend that all tokens were computed."""
    start = sequence.num_computed_tokens
    sequence.num_computed_tokens = sequence.num_tokens
    pool.index(sequence, start)


class Pages(RuleBasedStateMachine):
    """Random requests over a tiny vocabulary, so that prefixes are often shared, against a shadow of all contents."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of(12)
        self.live: list[Sequence] = []
        # What the tensors behind the pages would hold.
        self.contents: dict[int, tuple[int, ...]] = {}

    def write(self, sequence: Sequence, start: int) -> None:
        tokens = sequence.token_ids(0, sequence.num_tokens)
        for place, page in enumerate(sequence.block_table):
            if (place + 1) * PAGE_SIZE > start:
                self.contents[page] = tuple(tokens[: (place + 1) * PAGE_SIZE])

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20), spare=st.integers(0, 3), cached=st.booleans())
    def admit(self, tokens: list[int], spare: int, cached: bool) -> None:
        sequence = sequence_of(tokens)
        available = self.pool.num_available
        if self.pool.admit(sequence, num_spare=spare, use_cache=cached):
            hits = sequence.num_computed_tokens
            assert hits < sequence.num_tokens
            for place in range(hits // PAGE_SIZE):
                assert self.contents[sequence.block_table[place]] == tuple(tokens[: (place + 1) * PAGE_SIZE])
            self.write(sequence, hits)
            compute(self.pool, sequence)
            self.live.append(sequence)
        else:
            assert sequence.block_table == []
            assert self.pool.num_available == available

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def extend(self, data: st.DataObject, token: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        sequence.output_ids.append(token)
        if self.pool.extend(sequence):
            start = sequence.num_computed_tokens
            self.write(sequence, start)
            compute(self.pool, sequence)
        else:
            assert self.pool.num_available == 0
            sequence.output_ids.pop()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), is_sound=st.booleans())
    def release(self, data: st.DataObject, is_sound: bool) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.pool.release(sequence, is_sound=is_sound)

    @invariant()
    def pages_are_owned_as_often_as_they_are_referenced(self) -> None:
        owners = Counter(page for sequence in self.live for page in sequence.block_table)
        for sequence in self.live:
            assert len(sequence.block_table) == -(-sequence.num_tokens // PAGE_SIZE)
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            tail = sequence.block_table[sequence.num_tokens // PAGE_SIZE :]
            assert all(owners[page] == 1 for page in tail), "a page that is still written to is shared"
        assert self.pool.num_available == 12 - len(owners)

    def teardown(self) -> None:
        for sequence in self.live:
            self.pool.release(sequence)
        assert self.pool.num_available == 12
        assert self.pool.usage_ratio == 0


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_growing_sequence_keeps_one_run_beside_another() -> None:
    pool = pool_of(64)
    first, second = admit(pool, [1] * 10), admit(pool, [2] * 10)

    for _ in range(60):
        for sequence in (first, second):
            sequence.output_ids.append(3)
            assert pool.extend(sequence)

    for sequence in (first, second):
        table = sequence.block_table
        assert table == list(range(table[0], table[0] + len(table)))


def test_idle_pages_give_way_to_a_run() -> None:
    pool = pool_of(32)
    for token in range(8):
        sequence = admit(pool, [token] * 16)
        compute(pool, sequence)
        pool.release(sequence)

    table = admit(pool, [99] * 32).block_table

    assert table == list(range(table[0], table[0] + 8))


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = pool_of(8, prefers_runs=False)
    for token in (1, 2):
        sequence = admit(pool, [token] * 16)
        compute(pool, sequence)
        pool.release(sequence)
    pool.release(admit(pool, [1] * 17))

    pool.release(admit(pool, [3] * 12))

    recent = admit(pool, [1] * 17)
    assert recent.num_computed_tokens == 16
    pool.release(recent)
    # Of the older one the head is left: the tail goes first.
    assert admit(pool, [2] * 17).num_computed_tokens == 4


def test_equal_pages_behind_different_prefixes_are_not_shared() -> None:
    pool = pool_of(16)
    compute(pool, admit(pool, [1] * 4 + [7] * 4))

    other = admit(pool, [2] * 4 + [7] * 4 + [0])

    assert other.num_computed_tokens == 0


def test_an_unsound_sequence_is_forgotten() -> None:
    pool = pool_of(16)
    sequence = admit(pool, [1] * 9)
    compute(pool, sequence)

    pool.release(sequence, is_sound=False)

    assert admit(pool, [1] * 9).num_computed_tokens == 0


def test_without_prefix_cache_nothing_is_shared() -> None:
    pool = pool_of(16, supports_prefix_cache=False)
    compute(pool, admit(pool, [1] * 9))

    assert admit(pool, [1] * 9).num_computed_tokens == 0
