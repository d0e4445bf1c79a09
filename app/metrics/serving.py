"""The metrics of serving, one registry per app, as vLLM's bench defines them, so that numbers mean the same."""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from app import __version__
from app.metrics.stamps import RequestStamps
from app.metrics.vllm_names import alias
from workers.protocol.messages import FinishReason

TTFT_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0),
)
REQUEST_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5),
    *(5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


# What `requests` counts: status and finish_reason.
_OUTCOMES: Final = (("ok", "stop"), ("ok", "length"), ("error", "error"), ("cancelled", "cancelled"))


class EndedChoice(Protocol):
    """What the metrics read of a choice."""

    num_tokens: int
    finish_reason: FinishReason | None


class EndedRun(Protocol):
    """What the metrics read of a request that has ended."""

    stamps: RequestStamps
    gaps_s: list[float]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        ...

    @property
    def choices(self) -> Iterable[EndedChoice]:
        """Its sequences."""
        ...


class _Exposed(Collector):
    """A registry but for the `_created` series, which double the counters and which no dashboard reads.

    prometheus_client can turn them off too, but only for the whole process. has_aliases: with vLLM's names beside ours.
    """

    def __init__(self, registry: CollectorRegistry, *, has_aliases: bool) -> None:
        self._registry = registry
        self._has_aliases = has_aliases

    def collect(self) -> Iterator[Metric]:
        """Every family, with what it measures."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
            if self._has_aliases:
                yield from alias(family)


class ServingMetrics:
    """Counters and histograms of requests, by variant. Variants are names of the registry, never users' strings."""

    def __init__(self, *, has_vllm_names: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._exposed = _Exposed(self.registry, has_aliases=has_vllm_names)
        self._ttft = self._histogram("time_to_first_token", "From arrival to the first token.", TTFT_BUCKETS_S)
        self._tpot = self._histogram("time_per_output_token", "Per token after the first.", TOKEN_BUCKETS_S)
        self._itl = self._histogram("inter_token_latency", "Gap between two tokens.", TOKEN_BUCKETS_S)
        self._e2e = self._histogram("e2e_request_latency", "From arrival to the last token.", REQUEST_BUCKETS_S)
        self._queue = self._histogram("queue_time", "From arrival to the first step.", REQUEST_BUCKETS_S)
        self._prefill = self._histogram("prefill_time", "From first step to first token.", REQUEST_BUCKETS_S)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that ran.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._requests = self._counter("requests", "Requests by outcome.", "status", "finish_reason")
        self._rejections = self._counter("admission_rejections", "Requests refused before any work.", "reason")
        self._autoloads = self._counter("autoloads", "Loads begun for a request, by outcome.", "outcome")
        self._evictions = self._counter("evictions", "Idle variants unloaded to make room for another.")
        self._idle_unloads = self._counter("idle_unloads", "Variants unloaded after a time without requests.")
        self._nan_logits = self._counter("nan_logits", "Sequences ended because their logits were not finite.")
        Info("slimserve_build", "This server.", registry=self.registry).info({"version": __version__})
        ProcessCollector(registry=self.registry)

    def expect(self, variant_id: str) -> None:
        """Begin the series of a variant at 0, so that its first request counts for rates, and a silent one is seen."""
        for histogram in (self._ttft, self._tpot, self._itl, self._e2e, self._queue, self._prefill):
            histogram.labels(variant_id)
        for counter in (self._prompt_tokens, self._generation_tokens, self._nan_logits, self._evictions):
            counter.labels(variant_id)
        self._idle_unloads.labels(variant_id)
        self._rejections.labels(variant_id, "queue_full")
        for status, reason in _OUTCOMES:
            self._requests.labels(variant_id, status, reason)
        for outcome in ("ready", "failed"):
            self._autoloads.labels(variant_id, outcome)

    def rejected(self, variant_id: str, reason: str) -> None:
        """A request was refused before any work; reason: the code of the error."""
        self._rejections.labels(variant_id, reason).inc()

    def nan_logits(self, variant_id: str) -> None:
        """A sequence ended because its logits were not finite."""
        self._nan_logits.labels(variant_id).inc()

    def autoloaded(self, variant_id: str, outcome: str) -> None:
        """A load that was begun for a request has ended; outcome: ready or failed."""
        self._autoloads.labels(variant_id, outcome).inc()

    def evicted(self, variant_id: str) -> None:
        """An idle variant was unloaded to make room for another."""
        self._evictions.labels(variant_id).inc()

    def unloaded_idle(self, variant_id: str) -> None:
        """A variant was unloaded because nobody had used it for the time set."""
        self._idle_unloads.labels(variant_id).inc()

    def ended(self, variant_id: str, status: str, run: EndedRun) -> None:
        """A request has ended; status: ok, error or cancelled. Only complete ones count for latencies."""
        choices = list(run.choices)
        reason = choices[0].finish_reason if status == "ok" else status
        self._requests.labels(variant_id, status, str(reason)).inc()
        self._prompt_tokens.labels(variant_id).inc(run.num_prompt_tokens)
        self._generation_tokens.labels(variant_id).inc(sum(choice.num_tokens for choice in choices))
        if status == "ok":
            self._observe(variant_id, run.stamps, run.gaps_s, max(choice.num_tokens for choice in choices))

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._exposed)

    def add_collector(self, collector: Collector) -> None:
        """Include what is looked up only when somebody asks: states of workers, variants and jobs."""
        self.registry.register(collector)

    def _observe(self, variant_id: str, stamps: RequestStamps, gaps_s: list[float], num_tokens: int) -> None:
        for histogram, seconds in (
            (self._ttft, stamps.ttft_s),
            (self._tpot, stamps.tpot_s(num_tokens)),
            (self._e2e, stamps.total_s),
            (self._queue, stamps.queue_s),
            (self._prefill, stamps.prefill_s),
        ):
            if seconds is not None:
                histogram.labels(variant_id).observe(seconds)
        itl = self._itl.labels(variant_id)
        for gap_s in gaps_s:
            itl.observe(gap_s)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"slimserve_{name}_seconds", help_text, ["variant"], buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"slimserve_{name}_total", help_text, ["variant", *labels], registry=self.registry)
