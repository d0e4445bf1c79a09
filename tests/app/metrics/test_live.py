"""Gauges that are looked up at every scrape."""

from dataclasses import dataclass, replace

from app.core.variants import VariantState
from app.metrics.live import LiveMetrics
from app.metrics.serving import ServingMetrics
from workers.protocol.messages import ModelInfo, Step, StepStats


@dataclass(frozen=True)
class Variant:
    """A variant that is loaded."""

    id: str
    info: ModelInfo | None
    state: VariantState = VariantState.READY
    base: str = "a"
    method: str = "int8"
    format: str = "int8"
    bits: int = 8
    restarts: int = 0
    group_size: int | None = None
    weight_bytes: int = 100
    kl_mean: float | None = None
    top1_agreement: float | None = None
    perplexity: float | None = None


def loaded(variant_id: str) -> Variant:
    info = ModelInfo(
        architecture="LlamaForCausalLM",
        num_parameters=10,
        max_model_len=64,
        format="int8",
        vocab_size=20,
        eos_token_ids=[1],
        device="cpu",
        device_name="a processor",
        dtype="fp32",
        lane="packed",
        lane_reason="",
        weight_bytes=100,
        kv_cache_bytes=50,
        kv_cache_tokens=64,
        process_bytes=1000,
        load_s=1.5,
    )
    return Variant(variant_id, info)


def live_metrics(variants: list[Variant]) -> LiveMetrics:
    return LiveMetrics(lambda: variants, list, lambda variant_id: {"a/int8": 5}.get(variant_id, 0))


def step(num_running: int) -> Step:
    stats = StepStats(num_running=num_running, num_waiting=2, kv_usage_ratio=0.5, process_bytes=2000)
    return Step(step=1, updates=[], stats=stats)


def test_newest_step_of_each_worker_is_shown_until_the_worker_has_gone() -> None:
    variants = [loaded("a/int8"), loaded("a/nf4")]
    live, metrics = live_metrics(variants), ServingMetrics()
    metrics.add_collector(live)
    for variant in variants:
        live.observe_step(variant.id, step(3))
        live.observe_step(variant.id, step(4))

    before = metrics.exposition().decode()
    live.forget_worker("a/int8")
    live.forget_worker("a/never-stepped")
    after = metrics.exposition().decode()

    assert 'slimserve_requests_running{variant="a/int8"} 4.0' in before
    assert 'slimserve_memory_bytes{device="cpu",kind="other",variant="a/int8"} 1850.0' in before
    for gauge in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
        assert f'slimserve_{gauge}{{variant="a/int8"}} 0.0' in after
    assert 'slimserve_worker_last_step_age_seconds{variant="a/int8"}' not in after
    assert 'slimserve_requests_running{variant="a/nf4"} 4.0' in after


def test_worker_without_a_step_has_made_none_since_it_was_ready() -> None:
    live, metrics = live_metrics([loaded("a/int8"), loaded("a/nf4")]), ServingMetrics()
    metrics.add_collector(live)
    live.observe_ready("a/int8")

    text = metrics.exposition().decode()

    age_s = float(text.partition('slimserve_worker_last_step_age_seconds{variant="a/int8"} ')[2].split()[0])
    assert 0 <= age_s < 60
    assert 'slimserve_requests_running{variant="a/int8"} 0.0' in text
    assert 'slimserve_worker_last_step_age_seconds{variant="a/nf4"}' not in text


def test_what_was_measured_of_a_variant_is_shown_and_nothing_else() -> None:
    measured = Variant("a/gptq", None, group_size=128, kl_mean=0.25, top1_agreement=0.5, perplexity=8.0)
    metrics = ServingMetrics()
    metrics.add_collector(live_metrics([measured, Variant("a/fp32", None)]))

    text = metrics.exposition().decode()

    assert 'slimserve_variant_kl_mean{variant="a/gptq"} 0.25' in text
    assert 'slimserve_variant_top1_agreement{variant="a/gptq"} 0.5' in text
    assert 'slimserve_variant_perplexity{variant="a/gptq"} 8.0' in text
    assert 'slimserve_variant_weight_bytes{variant="a/fp32"} 100.0' in text
    assert 'slimserve_variant_kl_mean{variant="a/fp32"}' not in text
    assert 'group_size="128"' in text


def test_gauges_have_vllm_s_names_too_if_asked_for() -> None:
    live, metrics = live_metrics([loaded("a/int8")]), ServingMetrics(has_vllm_names=True)
    metrics.add_collector(live)
    live.observe_step("a/int8", step(3))

    lines = metrics.exposition().decode().splitlines()

    assert 'vllm:num_requests_running{model_name="a/int8"} 3.0' in lines
    assert 'vllm:num_requests_waiting{model_name="a/int8"} 2.0' in lines
    assert 'vllm:kv_cache_usage_perc{model_name="a/int8"} 0.5' in lines
    assert 'slimserve_requests_running{variant="a/int8"} 3.0' in lines


def test_worker_that_crashed_holds_no_memory_and_its_variant_is_not_ready() -> None:
    crashed = replace(loaded("a/int8"), state=VariantState.RESTARTING, restarts=1)
    metrics = ServingMetrics()
    metrics.add_collector(live_metrics([crashed, loaded("a/nf4")]))

    text = metrics.exposition().decode()

    assert "slimserve_memory_bytes{" in text
    assert 'kind="weights",variant="a/nf4"' in text
    assert 'kind="weights",variant="a/int8"' not in text
    assert 'slimserve_variant_state{state="restarting",variant="a/int8"} 1.0' in text
    assert 'slimserve_variant_state{state="ready",variant="a/int8"} 0.0' in text
    assert 'slimserve_worker_restarts_total{variant="a/int8"} 1.0' in text


def test_requests_that_a_hung_worker_does_not_tell_of_are_in_flight() -> None:
    metrics = ServingMetrics()
    metrics.add_collector(live_metrics([loaded("a/int8")]))

    text = metrics.exposition().decode()

    assert 'slimserve_requests_running{variant="a/int8"} 0.0' in text
    assert 'slimserve_requests_in_flight{variant="a/int8"} 5.0' in text
