"""Everything about one variant and its worker."""

from typing import Final

from expressions import INSTANCE, ONE, per, quantiles, rate
from grafana import Dashboard, Panel, Query, Variable

VARIANT: Final = Dashboard(
    name="variant",
    title="slimserve: one variant",
    what="Everything about one variant and its worker.",
    variables=(INSTANCE, Variable(name="variant", values_of="slimserve_variant_info", is_multi=False)),
    panels=(
        Panel(
            title="State",
            what="The state that the variant is in.",
            kind="state-timeline",
            queries=per("state", f"slimserve_variant_state{{{ONE}}}"),
        ),
        Panel(
            title="Requests",
            what="In flight as the front end counts them; running and waiting as the worker's newest step says.",
            queries=(
                Query(expr=f"slimserve_requests_in_flight{{{ONE}}}", legend="in flight"),
                Query(expr=f"slimserve_requests_running{{{ONE}}}", legend="running"),
                Query(expr=f"slimserve_requests_waiting{{{ONE}}}", legend="waiting"),
            ),
        ),
        Panel(
            title="Ended requests",
            what="Per second, by the reason for which they ended.",
            unit="reqps",
            is_stacked=True,
            queries=per("finish_reason", rate("slimserve_requests_total", ONE, "finish_reason")),
        ),
        Panel(
            title="Time to first token",
            what="From arrival to the first token: requests per second in each bucket.",
            kind="heatmap",
            queries=per("le", rate("slimserve_time_to_first_token_seconds_bucket", ONE, "le")),
        ),
        *(
            Panel(title=title, what=what, unit="s", queries=quantiles(metric, ONE))
            for title, metric, what in (
                ("Time per output token", "time_per_output_token", "Per token after the first, one value per request."),
                ("Gaps between tokens", "inter_token_latency", "Every gap; a stutter shows here and not in the mean."),
                ("Whole request", "e2e_request_latency", "From arrival to the last token."),
                ("Queue time", "queue_time", "From arrival to the first step."),
                ("Prefill time", "prefill_time", "From the first step to the first token."),
            )
        ),
        Panel(
            title="Tokens",
            what="Per second: prompts, output, and prompt tokens that were cached and not computed.",
            queries=(
                Query(expr=rate("slimserve_prompt_tokens_total", ONE), legend="prompt"),
                Query(expr=rate("slimserve_generation_tokens_total", ONE), legend="output"),
                Query(expr=rate("slimserve_prefix_cache_hit_tokens_total", ONE), legend="cached"),
            ),
        ),
        Panel(
            title="KV pages",
            what="Share of the pages in use, and sequences put back for want of pages, per second.",
            unit="percentunit",
            units=(("put back", "short"),),
            queries=(
                Query(expr=f"slimserve_kv_cache_usage_ratio{{{ONE}}}", legend="in use"),
                Query(expr=rate("slimserve_preemptions_total", ONE), legend="put back"),
            ),
        ),
        Panel(
            title="Memory",
            what="What the worker holds, as measured.",
            unit="bytes",
            is_stacked=True,
            queries=(Query(expr=f"slimserve_memory_bytes{{{ONE}}}", legend="{{kind}} on {{device}}"),),
        ),
        Panel(
            title="Age of the newest step",
            what="It grows while nothing runs; with requests in flight it must not.",
            unit="s",
            queries=(Query(expr=f"slimserve_worker_last_step_age_seconds{{{ONE}}}", legend="age"),),
        ),
        Panel(
            title="Failures",
            what="Within the last hour: restarts, and sequences ended because their logits were not finite.",
            queries=(
                Query(expr=f"increase(slimserve_worker_restarts_total{{{ONE}}}[1h])", legend="restarts"),
                Query(expr=f"increase(slimserve_nan_logits_total{{{ONE}}}[1h])", legend="not finite"),
            ),
        ),
        Panel(
            title="Load time",
            what="Of the newest load, from the start of the worker to ready.",
            unit="s",
            queries=(Query(expr=f"slimserve_model_load_seconds{{{ONE}}}", legend="load"),),
        ),
    ),
)
