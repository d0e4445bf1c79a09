"""Gauges that are looked up only when somebody asks: what variants, workers and jobs are doing right now."""

import time
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.protocol.messages import ModelInfo, Step, StepStats

# States in which a variant's process holds what it said when it was ready; a crash ends that at once.
_HOLDING: Final = frozenset({"ready", "unloading"})


class LiveVariant(Protocol):
    """What is read of a variant. state: a member of the enumeration of all states."""

    @property
    def id(self) -> str: ...
    @property
    def state(self) -> StrEnum: ...
    @property
    def base(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int | None: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def kl_mean(self) -> float | None: ...
    @property
    def top1_agreement(self) -> float | None: ...
    @property
    def perplexity(self) -> float | None: ...
    @property
    def restarts(self) -> int: ...
    @property
    def info(self) -> ModelInfo | None: ...


class LiveJob(Protocol):
    """What is read of a job that runs. ratio: 0..1. rss_bytes: of its process. eta_s: to the end of its phase."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def ratio(self) -> float: ...
    @property
    def rss_bytes(self) -> int: ...
    @property
    def eta_s(self) -> float | None: ...


class LiveMetrics(Collector):
    """Reads variants and jobs at every scrape, and remembers the newest step of each worker.

    num_admitted: requests of a variant between admission and their end, as the front end counts them: a worker that
    hangs cannot tell.
    """

    def __init__(
        self,
        variants: Callable[[], Iterable[LiveVariant]],
        jobs: Callable[[], Iterable[LiveJob]],
        num_admitted: Callable[[str], int],
    ) -> None:
        self._variants = variants
        self._jobs = jobs
        self._num_admitted = num_admitted
        self._steps: dict[str, tuple[float, StepStats]] = {}

    def observe_ready(self, variant_id: str) -> None:
        """Called when a worker is ready: one that hangs in its first step has been without a step since then."""
        self._steps[variant_id] = (time.monotonic(), StepStats())

    def observe_step(self, variant_id: str, step: Step) -> None:
        """Called for every step of every worker."""
        self._steps[variant_id] = (time.monotonic(), step.stats)

    def forget_worker(self, variant_id: str) -> None:
        """Called when a worker has gone: what it ran and held has gone with it."""
        self._steps.pop(variant_id, None)

    def describe(self) -> list[Metric]:
        """Empty: registering must not look anything up."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state of this moment."""
        variants = list(self._variants())
        loaded = [(variant, variant.info) for variant in variants if variant.info is not None]
        yield from self._of_steps([variant.id for variant, _ in loaded])
        yield self._memory([(variant.id, info) for variant, info in loaded if variant.state.value in _HOLDING])
        load_s = _gauge("model_load_seconds", "From start of the worker to ready.", "variant")
        restarts = CounterMetricFamily(
            "slimserve_worker_restarts", "Workers restarted after a crash.", labels=["variant"]
        )
        described = InfoMetricFamily("slimserve_variant", "What each variant is.", labels=["variant"])
        states = _gauge("variant_state", "1 for the state that a variant is in, 0 for all others.", "variant", "state")
        admitted = _gauge("requests_in_flight", "Requests that were admitted and have not ended.", "variant")
        for variant in variants:
            admitted.add_metric([variant.id], self._num_admitted(variant.id))
            for state in type(variant.state):
                states.add_metric([variant.id, state.value], state is variant.state)
            restarts.add_metric([variant.id], variant.restarts)
            described.add_metric([variant.id], _description(variant))
        for variant, info in loaded:
            load_s.add_metric([variant.id], info.load_s)
        yield from (load_s, restarts, described, states, admitted)
        yield from self._of_jobs()
        yield from _quality(variants)

    def _of_steps(self, variant_ids: list[str]) -> Iterator[Metric]:
        now_s = time.monotonic()
        running = _gauge("requests_running", "Sequences in the running batch.", "variant")
        waiting = _gauge("requests_waiting", "Sequences that wait for a place.", "variant")
        kv_usage = _gauge("kv_cache_usage_ratio", "Used share of the KV pages.", "variant")
        age = _gauge("worker_last_step_age_seconds", "Since the newest step, or since it was ready.", "variant")
        preemptions = CounterMetricFamily(
            "slimserve_preemptions", "Sequences put back for want of KV pages, by this worker.", labels=["variant"]
        )
        prefix_hits = CounterMetricFamily(
            "slimserve_prefix_cache_hit_tokens", "Prompt tokens that this worker had cached.", labels=["variant"]
        )
        for variant_id in variant_ids:
            at_s, stats = self._steps.get(variant_id, (None, StepStats()))
            running.add_metric([variant_id], stats.num_running)
            waiting.add_metric([variant_id], stats.num_waiting)
            kv_usage.add_metric([variant_id], stats.kv_usage_ratio)
            preemptions.add_metric([variant_id], stats.preemptions_total)
            prefix_hits.add_metric([variant_id], stats.prefix_hit_tokens_total)
            if at_s is not None:
                age.add_metric([variant_id], now_s - at_s)
        yield from (running, waiting, kv_usage, age, preemptions, prefix_hits)

    def _memory(self, loaded: list[tuple[str, ModelInfo]]) -> Metric:
        memory = _gauge("memory_bytes", "Measured memory of a worker.", "variant", "kind", "device")
        for variant_id, info in loaded:
            _, stats = self._steps.get(variant_id, (None, StepStats()))
            process_bytes = stats.process_bytes or info.process_bytes
            other_bytes = max(0, process_bytes - info.weight_bytes - info.kv_cache_bytes)
            for kind, amount in (("weights", info.weight_bytes), ("kv", info.kv_cache_bytes), ("other", other_bytes)):
                memory.add_metric([variant_id, kind, info.device], amount)
        return memory

    def _of_jobs(self) -> Iterator[Metric]:
        progress = _gauge("job_progress_ratio", "Done share of a running job.", "job", "kind")
        memory = _gauge("job_memory_bytes", "Resident memory of a running job.", "job", "kind")
        eta = _gauge("job_eta_seconds", "Until the phase of a running job ends.", "job", "kind")
        for job in self._jobs():
            progress.add_metric([job.id, job.kind], job.ratio)
            memory.add_metric([job.id, job.kind], job.rss_bytes)
            if job.eta_s is not None:
                eta.add_metric([job.id, job.kind], job.eta_s)
        yield from (progress, memory, eta)


def _quality(variants: list[LiveVariant]) -> Iterator[Metric]:
    """What is known of variants whether they are loaded or not; a number that nobody has measured is left out."""
    size = _gauge("variant_weight_bytes", "Stored tensors.", "variant")
    kl = _gauge("variant_kl_mean", "KL(base || variant), nats per token.", "variant")
    agreement = _gauge("variant_top1_agreement", "Share of equal first choices, 0..1.", "variant")
    perplexity = _gauge("variant_perplexity", "As measured, on the text of most variants.", "variant")
    for variant in variants:
        for gauge, value in (
            (size, variant.weight_bytes),
            (kl, variant.kl_mean),
            (agreement, variant.top1_agreement),
            (perplexity, variant.perplexity),
        ):
            if value is not None:
                gauge.add_metric([variant.id], value)
    yield from (size, kl, agreement, perplexity)


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"slimserve_{name}", help_text, labels=labels)


def _description(variant: LiveVariant) -> dict[str, str]:
    description = {
        "base": variant.base,
        "method": variant.method,
        "format": variant.format,
        "bits": str(variant.bits),
        "group_size": "" if variant.group_size is None else str(variant.group_size),
    }
    if variant.info is not None:
        description |= {"device": variant.info.device, "dtype": variant.info.dtype, "lane": variant.info.lane}
    return description
