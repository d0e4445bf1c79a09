"""Stamps and samples."""

from dataclasses import dataclass, field

import pytest

from app.metrics.serving import ServingMetrics
from app.metrics.stamps import RequestStamps
from workers.protocol.messages import FinishReason


@dataclass
class Choice:
    """A choice that has ended."""

    num_tokens: int = 5
    finish_reason: FinishReason | None = FinishReason.STOP


@dataclass
class Ended:
    """A request that has ended: 0.5 s in the queue, 0.25 s of prefill, 5 tokens in 1 s."""

    stamps: RequestStamps = field(
        default_factory=lambda: RequestStamps(
            arrived_s=10.0, scheduled_s=10.5, first_token_s=10.75, last_token_s=11.75, ended_s=12.0
        )
    )
    gaps_s: list[float] = field(default_factory=lambda: [0.25] * 4)
    num_prompt_tokens: int = 7
    choices: list[Choice] = field(default_factory=lambda: [Choice()])


def test_times_are_those_of_the_definitions() -> None:
    stamps = Ended().stamps

    assert (stamps.queue_s, stamps.prefill_s, stamps.ttft_s, stamps.total_s) == (0.5, 0.25, 0.75, 2.0)
    assert (stamps.tpot_s(5), stamps.tpot_s(1)) == (0.25, None)


def test_request_that_never_ran_has_no_times() -> None:
    stamps = RequestStamps()

    assert (stamps.queue_s, stamps.prefill_s, stamps.ttft_s, stamps.tpot_s(3)) == (None, None, None, None)
    assert stamps.total_s >= 0


def test_complete_request_is_counted_and_timed() -> None:
    metrics = ServingMetrics()

    metrics.ended("a/fp32", "ok", Ended())

    text = metrics.exposition().decode()
    assert 'slimserve_requests_total{finish_reason="stop",status="ok",variant="a/fp32"} 1.0' in text
    assert 'slimserve_time_to_first_token_seconds_bucket{le="0.75",variant="a/fp32"} 1.0' in text
    assert 'slimserve_time_to_first_token_seconds_bucket{le="0.5",variant="a/fp32"} 0.0' in text
    assert 'slimserve_inter_token_latency_seconds_count{variant="a/fp32"} 4.0' in text
    assert 'slimserve_time_per_output_token_seconds_sum{variant="a/fp32"} 0.25' in text
    assert 'slimserve_generation_tokens_total{variant="a/fp32"} 5.0' in text
    assert 'slimserve_prompt_tokens_total{variant="a/fp32"} 7.0' in text


@pytest.mark.parametrize("status", ["error", "cancelled"])
def test_incomplete_request_is_counted_and_not_timed(status: str) -> None:
    metrics = ServingMetrics()

    metrics.ended("a/fp32", status, Ended())

    text = metrics.exposition().decode()
    assert f'slimserve_requests_total{{finish_reason="{status}",status="{status}",variant="a/fp32"}} 1.0' in text
    assert "time_to_first_token_seconds_count{" not in text


def test_apps_do_not_share_their_numbers() -> None:
    first, second = ServingMetrics(), ServingMetrics()

    first.rejected("a/fp32", "queue_full")

    assert "a/fp32" in first.exposition().decode()
    assert "a/fp32" not in second.exposition().decode()


def test_series_without_a_question_behind_them_are_left_out() -> None:
    metrics = ServingMetrics()
    metrics.ended("a/fp32", "ok", Ended())

    lines = metrics.exposition().decode().splitlines()

    assert [line for line in lines if "_created" in line] == []
    assert sum("_bucket{" in line for line in lines) > 20


def test_vllm_s_names_are_there_only_if_asked_for_and_say_the_same() -> None:
    plain, compatible = ServingMetrics(), ServingMetrics(has_vllm_names=True)
    for metrics in (plain, compatible):
        metrics.ended("a/fp32", "ok", Ended())
        metrics.ended("a/fp32", "error", Ended())

    lines = compatible.exposition().decode().splitlines()

    assert "vllm:" not in plain.exposition().decode()
    assert 'vllm:request_success_total{finished_reason="stop",model_name="a/fp32"} 1.0' in lines
    assert not [line for line in lines if line.startswith("vllm:request_success") and '"error"' in line]
    assert 'vllm:time_to_first_token_seconds_bucket{le="0.75",model_name="a/fp32"} 1.0' in lines
    assert 'vllm:inter_token_latency_seconds_count{model_name="a/fp32"} 4.0' in lines
    assert 'vllm:request_time_per_output_token_seconds_sum{model_name="a/fp32"} 0.25' in lines
    assert 'vllm:request_queue_time_seconds_sum{model_name="a/fp32"} 0.5' in lines
    assert 'vllm:request_prefill_time_seconds_sum{model_name="a/fp32"} 0.25' in lines
    assert 'vllm:e2e_request_latency_seconds_count{model_name="a/fp32"} 1.0' in lines
    assert 'vllm:prompt_tokens_total{model_name="a/fp32"} 14.0' in lines
    assert 'vllm:generation_tokens_total{model_name="a/fp32"} 10.0' in lines
    assert "# TYPE vllm:time_to_first_token_seconds histogram" in lines


def test_buckets_are_those_of_the_metrics_page() -> None:
    metrics = ServingMetrics()
    metrics.ended("a/fp32", "ok", Ended())

    lines = metrics.exposition().decode().splitlines()

    def bounds(name: str) -> str:
        found = [line for line in lines if line.startswith(f"slimserve_{name}_seconds_bucket")]
        return " ".join(line.split('le="')[1].split('"')[0] for line in found)

    seconds = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 +Inf"
    tokens = "0.001 0.002 0.004 0.006 0.008 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 10.0 +Inf"
    assert bounds("time_to_first_token") == seconds
    assert bounds("time_per_output_token") == bounds("inter_token_latency") == tokens


def test_series_of_a_variant_begin_at_zero_before_its_first_request() -> None:
    metrics = ServingMetrics()

    metrics.expect("a/fp32")

    lines = metrics.exposition().decode().splitlines()
    assert 'slimserve_requests_total{finish_reason="error",status="error",variant="a/fp32"} 0.0' in lines
    assert 'slimserve_time_to_first_token_seconds_count{variant="a/fp32"} 0.0' in lines
    assert 'slimserve_admission_rejections_total{reason="queue_full",variant="a/fp32"} 0.0' in lines


def test_series_that_have_begun_keep_their_numbers_when_the_worker_is_restarted() -> None:
    metrics = ServingMetrics()
    metrics.ended("a/fp32", "ok", Ended())

    metrics.expect("a/fp32")

    assert 'slimserve_generation_tokens_total{variant="a/fp32"} 5.0' in metrics.exposition().decode()
