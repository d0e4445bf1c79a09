"""The Pareto set and the order of variants, on numbers that are chosen and not measured."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.ranking import (
    Candidate,
    Constraints,
    LevelSpeed,
    better_than,
    dominates,
    judge,
    objectives,
    pareto,
    pareto_set,
    rank,
)


def candidate(
    variant: str,
    weight_bytes: int,
    kl: float | None,
    tokens_per_s: float | None = None,
    *,
    ttft_ms: float = 10.0,
    memory_bytes: int = 1000,
) -> Candidate:
    speeds = {} if tokens_per_s is None else {1: LevelSpeed(tokens_per_s=tokens_per_s, ttft_ms=ttft_ms)}
    return Candidate(
        variant=variant,
        method=variant,
        bits=4,
        weight_bytes=weight_bytes,
        memory_bytes=memory_bytes,
        is_memory_measured=True,
        kl=kl,
        speeds=speeds,
    )


def names(candidates: list[Candidate], constraints: Constraints) -> list[str]:
    return [verdict.candidate.variant for verdict in rank(candidates, constraints)]


def test_equal_points_do_not_dominate_each_other() -> None:
    assert not dominates((1, 2), (1, 2))
    assert pareto({"a": (1, 2), "b": (1, 2), "c": (1, 3)}) == {"a": True, "b": True, "c": False}


def test_point_that_ties_in_one_coordinate_is_dominated_by_a_better_other() -> None:
    assert pareto({"a": (1, 5), "b": (1, 4), "c": (2, 4)}) == {"a": False, "b": True, "c": False}


def test_whole_chain_of_dominated_points_is_out() -> None:
    chain = {f"p{index}": (float(index), float(index), float(index)) for index in range(5)}

    assert pareto(chain) == {"p0": True, "p1": False, "p2": False, "p3": False, "p4": False}


def test_loser_is_told_who_is_better() -> None:
    assert better_than({"a": (1, 1), "b": (2, 2), "c": (3, 3), "d": (0, None)}) == {
        "a": [],
        "b": ["a"],
        "c": ["a", "b"],
        "d": None,
    }


def test_each_end_of_a_trade_stays() -> None:
    assert pareto({"small": (1, 9), "near": (9, 1), "middle": (5, 5), "worse": (6, 6)}) == {
        "small": True,
        "near": True,
        "middle": True,
        "worse": False,
    }


def test_point_with_an_unknown_coordinate_neither_dominates_nor_is_judged() -> None:
    found = pareto({"best_but_unknown": (0, None), "a": (1, 1), "b": (2, 2)})

    assert found == {"best_but_unknown": None, "a": True, "b": False}


def test_no_points_and_one_point() -> None:
    assert pareto({}) == {}
    assert pareto({"a": (1,)}) == {"a": True}


@given(st.lists(st.tuples(*[st.one_of(st.none(), st.integers(0, 4).map(float))] * 3), min_size=1, max_size=12))
def test_every_loser_loses_to_a_member_and_no_member_loses(points: list[tuple[float | None, ...]]) -> None:
    named = {str(index): point for index, point in enumerate(points)}

    found = pareto(named)

    known = {name: tuple(v for v in point if v is not None) for name, point in named.items() if None not in point}
    members = [known[name] for name, is_member in found.items() if is_member]
    assert {name for name, is_member in found.items() if is_member is None} == set(named) - set(known)
    for name, point in known.items():
        assert any(dominates(member, point) for member in members) is not found[name]


def test_speed_counts_as_soon_as_one_variant_has_it() -> None:
    slow, fast, unmeasured = candidate("slow", 1, 0.1, 5), candidate("fast", 2, 0.2, 9), candidate("new", 1, 0.1)

    assert objectives([unmeasured], 1) == ("weight_bytes", "kl_mean")
    assert pareto_set([unmeasured], 1) == {"new": True}
    assert objectives([slow, unmeasured], 1) == ("weight_bytes", "kl_mean", "tokens_per_s")
    assert pareto_set([slow, fast, unmeasured], 1) == {"slow": True, "fast": True, "new": None}
    # nobody was measured with eight streams, so speed does not count there
    assert pareto_set([slow, fast], 8) == {"slow": True, "fast": False}


def test_with_a_limit_of_quality_the_smallest_comes_first() -> None:
    found = [candidate("base", 16, 0.0), candidate("int8", 8, 0.001), candidate("int4", 4, 0.5)]

    assert names(found, Constraints(max_kl=0.02)) == ["int8", "base"]
    assert names(found, Constraints(max_kl=1)) == ["int4", "int8", "base"]


def test_without_a_limit_of_quality_the_nearest_comes_first() -> None:
    found = [candidate("int4", 4, 0.5, memory_bytes=5), candidate("int8", 8, 0.001, memory_bytes=9)]

    assert names(found, Constraints(max_memory_bytes=10)) == ["int8", "int4"]
    assert names(found, Constraints(max_memory_bytes=8)) == ["int4"]


def test_ties_go_to_speed_then_distance_then_name() -> None:
    same = candidate("c", 4, 0.01, 10)
    found = [
        same,
        replace(same, variant="faster", speeds={1: LevelSpeed(tokens_per_s=11, ttft_ms=1)}),
        replace(same, variant="a"),
        replace(same, variant="nearer", kl=0.005),
    ]

    assert names(found, Constraints(max_kl=0.02)) == ["faster", "nearer", "a", "c"]


def test_limit_is_kept_where_it_is_met_exactly() -> None:
    exact = candidate("a", 4, 0.02, 30, ttft_ms=100, memory_bytes=500)
    constraints = Constraints(max_memory_bytes=500, min_tokens_per_s=30, max_ttft_ms=100, max_kl=0.02)

    assert judge(exact, constraints).qualifies


@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        (Constraints(max_memory_bytes=499), "memory_bytes 500 > 499"),
        (Constraints(min_tokens_per_s=31), "tokens_per_s at 1 stream 30 < 31"),
        (Constraints(max_ttft_ms=99), "ttft_ms at 1 stream 100 > 99"),
        (Constraints(max_kl=0.01), "kl_mean 0.02 > 0.01"),
    ],
    ids=["memory", "tokens", "ttft", "kl"],
)
def test_broken_limit_is_named_with_both_numbers(constraints: Constraints, reason: str) -> None:
    verdict = judge(candidate("a", 4, 0.02, 30, ttft_ms=100, memory_bytes=500), constraints)

    assert verdict.broken == (reason,)
    assert not verdict.qualifies


def test_unmeasured_variant_does_not_qualify_for_what_was_not_measured() -> None:
    unmeasured = candidate("a", 4, None)

    verdict = judge(unmeasured, Constraints(max_kl=1, min_tokens_per_s=1, max_perplexity_increase=0.1))

    assert verdict.unknown == ("tokens_per_s at 1 stream", "kl_mean", "perplexity_increase")
    assert judge(unmeasured, Constraints(max_memory_bytes=1000)).qualifies


def test_speed_counts_at_the_number_of_streams_asked_for() -> None:
    found = replace(
        candidate("a", 4, 0.1, 10),
        speeds={1: LevelSpeed(tokens_per_s=10, ttft_ms=1), 4: LevelSpeed(tokens_per_s=35, ttft_ms=9)},
    )

    assert not judge(found, Constraints(min_tokens_per_s=30)).qualifies
    assert judge(found, Constraints(min_tokens_per_s=30, streams=4)).qualifies
    assert judge(found, Constraints(min_tokens_per_s=30, streams=16)).unknown == ("tokens_per_s at 16 streams",)
