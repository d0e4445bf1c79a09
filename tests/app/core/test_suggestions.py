"""Each rule speaks where it should and is silent elsewhere."""

from dataclasses import replace

import pytest

from app.core.ranking import Candidate, Constraints, LevelSpeed
from app.core.suggestions import Situation, suggest

# 1,000 bytes of 16-bit weights, 200 of which no method compresses.
BASE = Candidate(variant="m/bf16", method="bf16", bits=16, weight_bytes=1000, memory_bytes=1100, kl=0.0)
INT8 = Candidate(variant="m/int8", method="int8", bits=8, weight_bytes=600, memory_bytes=700, kl=0.001)
NF4 = Candidate(variant="m/nf4", method="nf4", bits=4, weight_bytes=400, memory_bytes=500, kl=0.1)
GPTQ = replace(NF4, variant="m/gptq-int4-g128", method="gptq", kl=0.05)
AWQ_G32 = replace(NF4, variant="m/awq-int4-g32", method="awq", kl=0.04)

AUTO = replace(INT8, variant="m/auto-6bits-g32", method="auto", weight_bytes=500, kl=0.018)
AUTO_TOO_FAR = replace(AUTO, variant="m/auto-6.5bits-g32", kl=0.03)
AUTO_4 = replace(AUTO, variant="m/auto-4bits-g32", bits=4, kl=0.03)


def at(one: Candidate, tokens_per_s: float, streams: int = 1) -> Candidate:
    return replace(one, speeds={streams: LevelSpeed(tokens_per_s=tokens_per_s, ttft_ms=1)})


def suggested(*made: Candidate, base: Candidate = BASE, is_cuda: bool = False, **limits: float) -> list[str]:
    constraints = Constraints(**limits)  # type: ignore[arg-type]
    return [one.method for one in suggest(Situation(base=base, made=made, constraints=constraints, is_cuda=is_cuda))]


@pytest.mark.parametrize(
    ("made", "limits", "expected"),
    [
        pytest.param((), {}, ["int8"], id="nothing-made"),
        pytest.param((INT8,), {}, ["gptq-int4-g128"], id="eight-bits-leave-room-for-four"),
        pytest.param((replace(INT8, kl=0.015),), {}, [], id="eight-bits-use-up-the-distance"),
        pytest.param((replace(INT8, kl=0.0),), {"max_kl": 0}, [], id="no-distance-allowed"),
        pytest.param((INT8, GPTQ), {"max_kl": 0.06}, [], id="four-bits-near-enough"),
        pytest.param((NF4,), {}, ["int8", "gptq-int4-g128"], id="only-four-bits-and-too-far"),
        pytest.param((INT8, NF4), {}, ["gptq-int4-g128"], id="uncalibrated-too-far"),
        pytest.param((INT8, GPTQ), {}, ["gptq-int4-g32"], id="large-groups-too-far"),
        pytest.param((INT8, GPTQ, AWQ_G32), {}, ["auto-6.5bits-g32"], id="small-groups-tried"),
        pytest.param((INT8, AWQ_G32), {"max_kl": 0.035}, ["auto-5bits-g32"], id="between-and-hardly-too-far"),
        pytest.param((INT8, AWQ_G32), {"max_kl": 0.005}, [], id="between-would-save-nothing"),
        pytest.param((INT8, AWQ_G32, AUTO), {}, [], id="between-is-made"),
        pytest.param(
            (INT8, AWQ_G32, AUTO_TOO_FAR),
            {},
            ["auto-6.75bits-g32"],
            id="between-is-too-far",
        ),
        pytest.param(
            (INT8, AUTO_4),
            {},
            ["auto-6bits-g32"],
            id="auto-is-gptq-already",
        ),
    ],
)
def test_quality_rules(made: tuple[Candidate, ...], limits: dict[str, float], expected: list[str]) -> None:
    assert suggested(*made, **limits) == expected


def test_what_is_in_quarantine_is_not_made_again() -> None:
    broken = replace(GPTQ, kl=None)

    for made in ((), (INT8,)):
        found = suggest(
            Situation(base=BASE, made=made, constraints=Constraints(), is_cuda=False, quarantined=(broken,))
        )
        assert "gptq-int4-g128" not in [one.method for one in found]


def test_memory_of_what_is_in_quarantine_helps_nobody() -> None:
    small = replace(GPTQ, kl=None, memory_bytes=400)
    constraints = Constraints(max_memory_bytes=450, max_kl=0.0005)

    found = suggest(Situation(base=BASE, made=(INT8,), constraints=constraints, is_cuda=False, quarantined=(small,)))

    assert found[0].method == "gptq-int3-g128"


def test_memory_asks_for_the_most_bits_that_fit() -> None:
    # 200 + 800 * 4/16 = 400 bytes of weights and the 100 beside them
    assert suggested(INT8, max_memory_bytes=500) == ["gptq-int4-g128"]
    # 200 + 800 * 3/16 = 350
    assert suggested(INT8, max_memory_bytes=450, max_kl=0.0005) == ["gptq-int3-g128"]
    assert suggested(INT8, max_memory_bytes=300, max_kl=0.0005) == []
    assert suggested(INT8, max_memory_bytes=700, max_kl=0.0005) == []


def test_speed_asks_for_fewer_bytes_per_token() -> None:
    assert suggested(at(INT8, 10), base=at(BASE, 8), min_tokens_per_s=20, max_kl=0.002) == ["gptq-int4-g128"]
    assert suggested(at(INT8, 10), base=at(BASE, 8), min_tokens_per_s=9, max_kl=0.002) == []


def test_many_streams_on_a_gpu_ask_for_eight_bit_floats() -> None:
    busy = at(INT8, 10, streams=64)

    assert suggested(busy, is_cuda=True, min_tokens_per_s=20, max_kl=0.002, streams=64) == ["fp8"]
    assert suggested(busy, is_cuda=False, min_tokens_per_s=20, max_kl=0.002, streams=64) == ["gptq-int4-g128"]


def test_method_is_suggested_once_with_the_first_reason() -> None:
    found = suggest(Situation(base=BASE, made=(INT8,), constraints=Constraints(max_memory_bytes=500), is_cuda=False))

    assert [one.method for one in found] == ["gptq-int4-g128"]
    assert "m/int8 takes 700 bytes, more than 500" in found[0].reason
