"""What may stand side by side, on reports that are chosen and not measured."""

from dataclasses import replace

import msgspec
from made_reports import environment, quality
from made_reports import speed as report

from app.core.comparable import common, merged, newest_with_distance, of_text, of_workload
from app.core.variants import Speed


def speed(
    *levels: int,
    new_tokens: int = 64,
    threads: int = 2,
    peak: int = 1,
    company: tuple[str, ...] = (),
    commit: str = "a",
) -> Speed:
    """peak: bytes, and tokens per second, and the date."""
    return Speed(
        report=report(*levels, tokens_per_s=peak, peak_bytes=peak, new_tokens=new_tokens, company=company),
        environment=environment(num_threads=threads, commit=commit),
        created=float(peak),
    )


def test_measurement_on_another_text_is_left_out_and_an_earlier_one_counts() -> None:
    here, elsewhere = quality("a"), quality("b", 1000.0)

    assert common([[here], [here, elsewhere], [here], [elsewhere], []], of_text) == [[here], [here], [here], [], []]


def test_other_windows_are_other_circumstances() -> None:
    here, wider = quality("a"), quality("a", window=1024)

    assert common([[here], [here], [wider]], of_text) == [[here], [here], []]


def test_of_equally_common_texts_the_later_counts() -> None:
    first, second = quality("a"), quality("b")

    assert common([[first, first, second], [first, second]], of_text) == [[second], [second]]


def test_other_workload_or_other_threads_are_other_circumstances() -> None:
    usual, short, threads = speed(1), speed(1, new_tokens=8), speed(1, threads=1)

    assert common([[usual], [usual], [short], [threads]], of_workload) == [[usual], [usual], [], []]


def test_measurement_without_distance_hides_none_that_has_one() -> None:
    full, plain = quality("a"), quality("a", kl_mean=None)

    assert newest_with_distance([full, plain]) is full
    assert newest_with_distance([plain]) is plain
    assert newest_with_distance([]) is None


def test_levels_of_earlier_reports_stay_beside_those_of_the_newest() -> None:
    found = merged([speed(1, 4, peak=3, company=("a/b",)), speed(4, 8, peak=2)])

    assert found is not None
    assert [(level.streams, level.tokens_per_s) for level in found.report.levels] == [(1, 3), (4, 2), (8, 2)]
    assert (found.report.peak_bytes, found.report.x_of_floor, found.created) == (3, 2.0, 2.0)
    assert [one.variant for one in found.report.neighbours] == ["a/b"]


def test_report_whose_levels_were_all_measured_again_says_nothing_more() -> None:
    found = merged([speed(1, peak=3, company=("a/b",)), speed(1, peak=2)])

    assert found is not None
    assert (found.report.peak_bytes, found.report.neighbours) == (2, [])


def test_levels_of_other_software_are_not_mixed_in() -> None:
    newest = speed(8, commit="b")
    other = replace(newest, environment=msgspec.structs.replace(newest.environment, software={"torch": "2"}))

    assert merged([speed(1), newest]) == newest
    assert merged([newest, other]) == other
    assert merged([]) is None
