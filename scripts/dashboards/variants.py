"""Variants side by side: speed, size and quality."""

from typing import Final

from expressions import CHOSEN, INSTANCE, latency, per, quantile, rate
from grafana import Dashboard, Panel, Query, Variable

_SHOWN: Final = Variable(name="variant", values_of="slimserve_variant_info")
# Base, method and bits ride on the numbers, so that each can be read alone.
_DESCRIBED: Final = "* on (instance, variant) group_left (base, method, bits) slimserve_variant_info"


def _now(expr: str) -> Query:
    return Query(expr=f"max by (variant) ({expr})", is_instant=True)


_TPOT_NOW: Final = _now(quantile(0.5, "time_per_output_token", CHOSEN, "variant"))
_KL_NOW: Final = _now(f"slimserve_variant_kl_mean{{{CHOSEN}}}")

VARIANTS: Final = Dashboard(
    name="variants",
    title="slimserve: variants side by side",
    what="Which variant is how fast, how large and how near to its base?",
    variables=(INSTANCE, _SHOWN),
    panels=(
        Panel(
            title="Speed and quality",
            what="One row per variant: what it is, its size, how it differs from its base, how fast it answers now.",
            kind="table",
            width=24,
            queries=(
                Query(
                    expr=f"max by (variant, base, method, bits, group_size) (slimserve_variant_info{{{CHOSEN}}})",
                    is_instant=True,
                ),
                _now(f"slimserve_variant_weight_bytes{{{CHOSEN}}}"),
                _KL_NOW,
                _now(f"slimserve_variant_top1_agreement{{{CHOSEN}}}"),
                _now(f"slimserve_variant_perplexity{{{CHOSEN}}}"),
                _now(quantile(0.5, "time_to_first_token", CHOSEN, "variant")),
                _TPOT_NOW,
                _now(rate("slimserve_generation_tokens_total", CHOSEN, "variant")),
            ),
            renamed=(
                ("variant", "variant"),
                ("base", "base"),
                ("method", "method"),
                ("bits", "bits"),
                ("group_size", "group size"),
                ("Value #B", "weights"),
                ("Value #C", "KL"),
                ("Value #D", "same first choice"),
                ("Value #E", "perplexity"),
                ("Value #F", "TTFT p50"),
                ("Value #G", "TPOT p50"),
                ("Value #H", "tokens/s"),
            ),
            units=(
                ("weights", "bytes"),
                ("same first choice", "percentunit"),
                ("TTFT p50", "s"),
                ("TPOT p50", "s"),
            ),
        ),
        Panel(
            title="Quality against speed",
            what="Right is farther from the base, up is slower per token: the best are at the lower left.",
            kind="xychart",
            unit="none",
            width=12,
            queries=(_KL_NOW, _TPOT_NOW),
            renamed=(("variant", "variant"), ("Value #A", "KL"), ("Value #B", "TPOT p50")),
        ),
        Panel(
            title="KL divergence",
            what="KL(base || variant), nats per token; uncompressed variants have none unless they were measured.",
            kind="bargauge",
            width=12,
            queries=(
                Query(
                    expr=f"slimserve_variant_kl_mean{{{CHOSEN}}} {_DESCRIBED}",
                    legend="{{base}} {{method}} {{bits}} bits",
                ),
            ),
        ),
        Panel(
            title="Same first choice",
            what="Share of tokens for which variant and base have the same most likely token.",
            kind="bargauge",
            unit="percentunit",
            queries=per("variant", f"slimserve_variant_top1_agreement{{{CHOSEN}}}"),
        ),
        Panel(
            title="Perplexity",
            what="As measured, on the text on which most variants of the base were; only variants of one base compare.",
            kind="bargauge",
            queries=per("variant", f"slimserve_variant_perplexity{{{CHOSEN}}}"),
        ),
        Panel(
            title="Stored weights",
            what="Bytes of the tensors.",
            kind="bargauge",
            unit="bytes",
            queries=per("variant", f"slimserve_variant_weight_bytes{{{CHOSEN}}}"),
        ),
        latency("Time per output token", 0.5, "time_per_output_token", CHOSEN, "Per token after the first, median."),
        latency("Time to first token", 0.5, "time_to_first_token", CHOSEN, "From arrival to the first token, median."),
        Panel(
            title="Output tokens",
            what="Tokens generated per second; it follows the traffic, so compare under the same load.",
            queries=per("variant", rate("slimserve_generation_tokens_total", CHOSEN, "variant")),
        ),
    ),
)
