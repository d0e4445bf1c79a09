"""Who runs next, and who gives way."""

from workers.engine.chunking import ChunkPacer
from workers.engine.runner import CacheGeometry
from workers.engine.scheduler import MAX_ALL_LOGITS_TOKENS, Scheduler, is_decoding
from workers.engine.sequence import Row, Sequence
from workers.protocol.specs import SamplingParams


def scheduler_of(
    *, num_pages: int = 64, num_slots: int = 0, max_num_seqs: int = 8, budget: int = 32, supports_chunks: bool = True
) -> Scheduler:
    geometry = CacheGeometry(num_pages=num_pages, page_size=4, num_slots=num_slots, supports_chunks=supports_chunks)
    pacer = ChunkPacer(max_tokens=budget, is_timed=False)
    return Scheduler(geometry, max_num_seqs=max_num_seqs, pacer=pacer, release=lambda sequence: None)


def sequence_of(name: str, num_tokens: int, *, prompt_logprobs: int | None = None) -> Sequence:
    # A token of its own, so that no two sequences share a prefix.
    params = SamplingParams(max_tokens=1000, prompt_logprobs=prompt_logprobs)
    return Sequence(request_id=name, prompt_ids=[hash(name) % 2**31] * num_tokens, params=params)


def play(scheduler: Scheduler) -> list[tuple[str, int]]:
    """One step in which every row succeeds. Returns (id, tokens) per row."""
    rows = scheduler.schedule()
    for row in rows:
        advance(row)
    return [(row.sequence.request_id, row.num_tokens) for row in rows]


def advance(row: Row) -> None:
    is_last = row.is_last_chunk
    row.sequence.num_computed_tokens += row.num_tokens
    if is_last:
        row.sequence.output_ids.append(0)


def test_decode_rows_come_first_and_prompts_share_the_rest_in_order_in_whole_pages() -> None:
    scheduler = scheduler_of(budget=10)
    for name, length in (("a", 4), ("b", 25), ("c", 3)):
        scheduler.add(sequence_of(name, length))

    steps = [play(scheduler) for _ in range(4)]

    assert steps == [
        [("a", 4), ("b", 4), ("c", 3)],
        [("a", 1), ("c", 1), ("b", 8)],
        [("a", 1), ("c", 1), ("b", 8)],
        [("a", 1), ("c", 1), ("b", 5)],
    ]


def test_no_more_sequences_run_than_allowed() -> None:
    scheduler = scheduler_of(max_num_seqs=2)
    for name in "abc":
        scheduler.add(sequence_of(name, 2))

    rows = play(scheduler)

    assert [name for name, _ in rows] == ["a", "b"]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)


def test_the_newest_gives_way_and_comes_back_before_those_behind_it() -> None:
    scheduler = scheduler_of(num_pages=6)
    old, new, late = sequence_of("old", 8), sequence_of("new", 7), sequence_of("late", 1)
    scheduler.add(old)
    play(scheduler)
    scheduler.add(new)
    scheduler.add(late)
    while scheduler.num_preemptions == 0:
        play(scheduler)

    assert new.block_table == []
    assert new.num_computed_tokens == 0
    # It must not be overtaken by "late", for which there would be a page.
    assert [name for name, _ in play(scheduler)] == ["old"]
    scheduler.remove(old)
    assert [name for name, _ in play(scheduler)][:2] == ["new", "late"]


def test_the_oldest_always_advances() -> None:
    scheduler = scheduler_of(num_pages=8)
    sequences = [sequence_of(f"s{i}", 6) for i in range(6)]
    for sequence in sequences:
        scheduler.add(sequence)

    for sequence in sequences:
        while len(sequence.output_ids) < 24:
            assert sequence.request_id in [name for name, _ in play(scheduler)]
        scheduler.remove(sequence)

    assert scheduler.num_preemptions > 0
    assert scheduler.pages.usage_ratio == 0


def test_a_newcomer_leaves_a_page_for_everyone_who_runs() -> None:
    scheduler = scheduler_of(num_pages=5)
    scheduler.add(sequence_of("a", 4))
    play(scheduler)

    scheduler.add(sequence_of("b", 16))
    scheduler.add(sequence_of("c", 4))

    assert play(scheduler) == [("a", 1)]


def test_an_uncut_prompt_over_the_budget_is_the_only_one_of_its_step() -> None:
    scheduler = scheduler_of(budget=10, supports_chunks=False)
    for name, length in (("a", 6), ("b", 30), ("c", 2)):
        scheduler.add(sequence_of(name, length))

    steps = [play(scheduler) for _ in range(3)]

    assert steps == [[("a", 6)], [("a", 1), ("b", 30)], [("a", 1), ("b", 1), ("c", 2)]]


def test_rows_with_all_logits_are_short_and_take_no_cached_prefix() -> None:
    scheduler = scheduler_of(num_pages=512, budget=1000)
    plain, scored = sequence_of("a", 600), sequence_of("b", 600, prompt_logprobs=0)
    scored.prompt_ids = plain.prompt_ids
    scheduler.add(plain)
    play(scheduler)
    scheduler.pages.index(plain, 0)
    scheduler.add(scored)

    rows = scheduler.schedule()

    assert [(row.sequence, row.num_tokens, row.wants_all_logits) for row in rows] == [
        (plain, 1, False),
        (scored, MAX_ALL_LOGITS_TOKENS, True),
    ]
    assert scored.num_cached_tokens == 0


def test_slots_limit_admission() -> None:
    scheduler = scheduler_of(num_slots=1)
    first, second = sequence_of("a", 2), sequence_of("b", 2)
    scheduler.add(first)
    scheduler.add(second)

    assert play(scheduler) == [("a", 2)]
    assert (first.slot, second.slot) == (0, None)
    scheduler.remove(first)
    assert play(scheduler) == [("b", 2)]
    assert (first.slot, second.slot) == (None, 0)


def test_a_one_token_prompt_is_not_a_decode_row() -> None:
    sequence = sequence_of("a", 1)

    assert not is_decoding(sequence)
    sequence.num_computed_tokens, sequence.output_ids = 1, [0]
    assert is_decoding(sequence)


def test_smaller_priority_begins_first_and_equal_ones_in_order() -> None:
    scheduler = scheduler_of(max_num_seqs=1)
    for name, priority in (("now", 5), ("late", 2), ("first", -1), ("late-too", 2), ("default", 0)):
        sequence = sequence_of(name, 2)
        sequence.priority = priority
        scheduler.add(sequence)

    begun = []
    while scheduler.num_waiting:
        row = scheduler.schedule()[0]
        begun.append(row.sequence.request_id)
        scheduler.remove(row.sequence)

    assert begun == ["first", "default", "late", "late-too", "now"]


def test_priority_does_not_overtake_what_was_preempted() -> None:
    scheduler = scheduler_of(num_pages=6)
    old, new, urgent = sequence_of("old", 8), sequence_of("new", 7), sequence_of("urgent", 1)
    urgent.priority = -1
    scheduler.add(old)
    play(scheduler)
    scheduler.add(new)
    while scheduler.num_preemptions == 0:
        play(scheduler)
        # as the engine stamps it at a sequence's first step
        new.scheduled_at_s = 1.0

    scheduler.add(urgent)
    scheduler.remove(old)

    assert [name for name, _ in play(scheduler)] == ["new", "urgent"]
