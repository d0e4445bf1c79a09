"""Who must go for a load to fit: nobody too many, never the busy or the pinned, and what a refusal says."""

import pytest

from app.core.room import Need, Resident, Room
from app.errors import DoesNotFit, NoRoomNow

GIB = 2**30


def resident(name: str, size: int, used_at_s: float, *, is_busy: bool = False, is_pinned: bool = False) -> Resident:
    return Resident(
        variant_id=name,
        held_bytes=size * GIB,
        returned_bytes=size * GIB // 2,
        used_at_s=used_at_s,
        is_busy=is_busy,
        is_pinned=is_pinned,
    )


def room(*residents: Resident, budget: int | None = 10, available: int | None = None) -> Room:
    return Room(
        budget_bytes=None if budget is None else budget * GIB,
        available_bytes=None if available is None else available * GIB,
        residents=residents,
    )


def victims(found: Room, needed: int) -> list[str] | None:
    chosen = found.victims(needed * GIB)
    return None if chosen is None else [one.variant_id for one in chosen]


def test_nobody_goes_for_what_fits_anyway() -> None:
    assert victims(room(resident("a", 4, 1.0)), 6) == []


def test_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    loaded = room(resident("new", 3, 3.0), resident("old", 3, 1.0), resident("middle", 3, 2.0))

    assert victims(loaded, 2) == ["old"]
    assert victims(loaded, 5) == ["old", "middle"]
    assert victims(loaded, 10) == ["old", "middle", "new"]
    assert victims(loaded, 11) is None


def test_small_one_stays_if_a_large_one_must_go_anyway() -> None:
    loaded = room(resident("small", 1, 1.0), resident("large", 8, 2.0))

    assert victims(loaded, 5) == ["large"]


@pytest.mark.parametrize("why", ["is_busy", "is_pinned"])
def test_busy_and_pinned_stay_and_nobody_goes_in_vain(why: str) -> None:
    loaded = room(resident("stays", 6, 1.0, **{why: True}), resident("idle", 3, 2.0))

    assert victims(loaded, 4) == ["idle"]
    assert victims(loaded, 5) is None


def test_what_the_machine_gets_back_decides_where_no_budget_is_set() -> None:
    loaded = room(resident("a", 4, 1.0), resident("b", 4, 2.0), budget=None, available=1)

    assert victims(loaded, 3) == ["a"]
    assert victims(loaded, 4) == ["a", "b"]
    assert victims(loaded, 6) is None


def test_both_limits_hold_and_none_refuses_nothing() -> None:
    loaded = [resident("a", 4, 1.0), resident("b", 4, 2.0)]

    assert victims(room(*loaded, budget=100, available=1), 3) == ["a"]
    assert victims(room(*loaded, budget=10, available=100), 3) == ["a"]
    assert victims(room(*loaded, budget=None), 1000) == []


def test_refusal_names_needed_and_free_bytes_and_who_is_in_the_way() -> None:
    loaded = room(
        resident("a/x", 4, 1.0, is_busy=True), resident("b/x", 3, 2.0, is_pinned=True), resident("c/x", 1, 3.0)
    )

    error = loaded.refusal("d/x", Need(num_bytes=6 * GIB, is_measured=True), may_evict=True)

    assert isinstance(error, NoRoomNow)
    assert (error.status, error.code) == (507, "does_not_fit")
    for part in (
        f"No room for 'd/x': {6 * GIB:,} bytes",
        f"{2 * GIB:,} are free",
        "busy: 'a/x'",
        "pinned: 'b/x'",
        "idle: 'c/x'",
    ):
        assert part in error.message


def test_refusal_says_what_would_help() -> None:
    loaded = room(resident("pinned", 8, 1.0, is_pinned=True), resident("idle", 1, 2.0))

    never = loaded.refusal("x", Need(num_bytes=5 * GIB, is_measured=False), may_evict=True)
    refused = loaded.refusal("x", Need(num_bytes=2 * GIB, is_measured=False), may_evict=False)

    assert type(never) is type(refused) is DoesNotFit
    assert "about" in never.message
    assert '"evict": true' in refused.message
