"""Gauges that are looked up at every scrape."""

from dataclasses import dataclass

from app.metrics.live import LiveMetrics
from app.metrics.serving import ServingMetrics
from workers.protocol.messages import ModelInfo, Step, StepStats


@dataclass(frozen=True)
class Variant:
    """A variant that is loaded."""

    id: str
    info: ModelInfo | None
    base: str = "a"
    method: str = "int8"
    format: str = "int8"
    bits: int = 8
    restarts: int = 0


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


def step(num_running: int) -> Step:
    stats = StepStats(num_running=num_running, num_waiting=2, kv_usage_ratio=0.5, process_bytes=2000)
    return Step(step=1, updates=[], stats=stats)


def test_newest_step_of_each_worker_is_shown_until_the_worker_has_gone() -> None:
    variants = [loaded("a/int8"), loaded("a/nf4")]
    live, metrics = LiveMetrics(lambda: variants, list), ServingMetrics()
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
