"""The same numbers under vLLM's names, for tools that know no others.

Off by default: promtool refuses names with colons.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

_NAMES: Final = {
    "slimserve_requests_running": "vllm:num_requests_running",
    "slimserve_requests_waiting": "vllm:num_requests_waiting",
    "slimserve_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "slimserve_prompt_tokens": "vllm:prompt_tokens",
    "slimserve_generation_tokens": "vllm:generation_tokens",
    "slimserve_requests": "vllm:request_success",
    "slimserve_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "slimserve_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "slimserve_time_per_output_token_seconds": "vllm:request_time_per_output_token_seconds",
    "slimserve_e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "slimserve_queue_time_seconds": "vllm:request_queue_time_seconds",
    "slimserve_prefill_time_seconds": "vllm:request_prefill_time_seconds",
}
_LABELS: Final = {"variant": "model_name", "finish_reason": "finished_reason"}


def alias(family: Metric) -> Iterator[Metric]:
    """The family once more as vLLM calls it, if vLLM has it."""
    name = _NAMES.get(family.name)
    if name is None:
        return
    renamed = Metric(name, family.documentation, family.type)
    renamed.samples = [
        Sample(name + sample.name.removeprefix(family.name), _labels(sample.labels), sample.value)
        for sample in family.samples
        # vLLM counts those that succeeded
        if sample.labels.get("status", "ok") == "ok"
    ]
    yield renamed


def _labels(labels: dict[str, str]) -> dict[str, str]:
    return {_LABELS.get(name, name): value for name, value in labels.items() if name != "status"}
