"""Is the server well, and what is it doing?"""

from typing import Final

from expressions import HERE, INSTANCE, latency, per, rate, stat
from grafana import Dashboard, Panel, Query

OVERVIEW: Final = Dashboard(
    name="overview",
    title="slimserve: overview",
    what="Is the server well, and what is it doing?",
    variables=(INSTANCE,),
    panels=(
        stat("Servers up", "Servers that answered the newest scrape.", f'sum(up{{job="slimserve", {HERE}}})'),
        stat(
            "Alerts",
            "Alerts that fire now; their runbooks are in docs/guides/monitoring.md.",
            'sum(ALERTS{alertname=~"Slimserve.+", alertstate="firing"}) or vector(0)',
        ),
        stat(
            "Variants ready",
            "Variants that take requests.",
            f'sum(slimserve_variant_state{{state="ready", {HERE}}})',
        ),
        stat(
            "Requests in flight",
            "Admitted and not ended: running, waiting, or waiting for a load.",
            f"sum(slimserve_requests_in_flight{{{HERE}}})",
        ),
        stat(
            "Output",
            "Tokens generated per second, by all variants together.",
            f"sum(rate(slimserve_generation_tokens_total{{{HERE}}}[$__rate_interval]))",
        ),
        stat(
            "Failed requests",
            "Share of the requests that ended, without those that clients left.",
            f'sum(rate(slimserve_requests_total{{status="error", {HERE}}}[$__rate_interval]))'
            f' / sum(rate(slimserve_requests_total{{status=~"ok|error", {HERE}}}[$__rate_interval]))',
            unit="percentunit",
        ),
        Panel(
            title="Requests by outcome",
            what="Requests that ended, per second. `cancelled`: the client left.",
            unit="reqps",
            is_stacked=True,
            queries=per("status", rate("slimserve_requests_total", HERE, "status")),
        ),
        Panel(
            title="Output tokens",
            what="Tokens generated per second, by variant.",
            is_stacked=True,
            queries=per("variant", rate("slimserve_generation_tokens_total", HERE, "variant")),
        ),
        Panel(
            title="Refused requests",
            what="Requests per second that ended before any work, by the code of the error.",
            unit="reqps",
            queries=per("reason", rate("slimserve_admission_rejections_total", HERE, "reason")),
        ),
        latency(
            "Time to first token",
            0.95,
            "time_to_first_token",
            HERE,
            "From arrival to the first token, of the slowest twentieth.",
        ),
        latency("Time per output token", 0.5, "time_per_output_token", HERE, "Per token after the first, median."),
        latency("Queue time", 0.95, "queue_time", HERE, "From arrival to the first step, of the slowest twentieth."),
        Panel(
            title="Memory of workers",
            what="What each worker holds, as measured: weights, KV pages and the rest of the process.",
            unit="bytes",
            is_stacked=True,
            queries=(
                Query(expr=f"sum by (variant, kind) (slimserve_memory_bytes{{{HERE}}})", legend="{{variant}} {{kind}}"),
            ),
        ),
        Panel(
            title="KV pages in use",
            what="Share of the pages; at 1, sequences wait or are put back.",
            unit="percentunit",
            queries=per("variant", f"slimserve_kv_cache_usage_ratio{{{HERE}}}"),
        ),
        Panel(
            title="Variants by state",
            what="How many variants are in which state.",
            is_stacked=True,
            queries=per("state", f"sum by (state) (slimserve_variant_state{{{HERE}}})"),
        ),
        Panel(
            title="Restarts",
            what="Workers started again after a crash, per hour.",
            queries=per("variant", f"sum by (variant) (increase(slimserve_worker_restarts_total{{{HERE}}}[1h]))"),
        ),
        Panel(
            title="Loads on request",
            what="Loads that requests have begun, and variants that had to go: evicted, or idle, per hour.",
            queries=(
                Query(
                    expr=f"sum by (outcome) (increase(slimserve_autoloads_total{{{HERE}}}[1h]))",
                    legend="load {{outcome}}",
                ),
                Query(expr=f"sum(increase(slimserve_evictions_total{{{HERE}}}[1h]))", legend="evicted"),
                Query(expr=f"sum(increase(slimserve_idle_unloads_total{{{HERE}}}[1h]))", legend="unloaded when idle"),
            ),
        ),
        Panel(
            title="Front end",
            what="Memory of the process that speaks HTTP, and the share of one core that it takes.",
            unit="bytes",
            units=(("cores", "percentunit"),),
            queries=(
                Query(expr=f'process_resident_memory_bytes{{job="slimserve", {HERE}}}', legend="memory"),
                Query(
                    expr=f'rate(process_cpu_seconds_total{{job="slimserve", {HERE}}}[$__rate_interval])',
                    legend="cores",
                ),
            ),
        ),
    ),
)
