"""What may stand side by side, on reports that are chosen and not measured."""

from dataclasses import replace

import msgspec

from app.core.comparable import common, merged, newest_with_distance, of_text, of_workload
from app.core.variants import Speed
from app.schemas.reports import Environment, Neighbour, Percentiles, SpeedLevel, SpeedReport
from workers.protocol.messages import MeasureResult


def quality(text: str, perplexity: float = 5.0, *, kl: float | None = 0.1, window: int = 512) -> MeasureResult:
    return MeasureResult(
        perplexity=perplexity,
        nll=1.0,
        perplexity_interval=None,
        num_tokens=1000,
        num_windows=2,
        window=window,
        stride=256,
        block_tokens=64,
        kl_mean=kl,
        text_sha256=text,
    )


def speed(
    *levels: int,
    new_tokens: int = 64,
    threads: int = 2,
    peak: int = 1,
    company: tuple[str, ...] = (),
    commit: str = "a",
) -> Speed:
    one = Percentiles(num_values=1, p50=float(peak))
    report = SpeedReport(
        prompt_tokens=128,
        new_tokens=new_tokens,
        levels=[
            SpeedLevel(streams=n, requests=1, duration_s=1, ttft_ms=one, tpot_ms=one, itl_ms=one, tokens_per_s=peak)
            for n in levels
        ],
        load_s=1,
        weight_bytes=1,
        kv_cache_bytes=1,
        process_bytes=1,
        peak_bytes=peak,
        bytes_on_disk=1,
        bits_per_weight=8,
        read_bytes_per_s=1,
        floor_ms=1,
        x_of_floor=2.0 if 1 in levels else None,
        dtype="bf16",
        lane="packed",
        kernel="",
        was_serving=True,
        neighbours=[Neighbour(variant=name, num_steps=1) for name in company],
    )
    environment = Environment(
        device="cpu", device_name="A", num_cpus=2, num_threads=threads, load_average=0, commit=commit, software={}
    )
    return Speed(report=report, environment=environment, created=float(peak))


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
    full, plain = quality("a"), quality("a", kl=None)

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
