"""Expressions that several dashboards need.

Rates look at `$__rate_interval`, which Grafana makes from the scrape interval. Latencies are those of requests that
completed: a quantile has no value where none did.
"""

from typing import Final

from grafana import Panel, Query, Variable

INSTANCE: Final = Variable(name="instance", values_of="slimserve_build_info")
HERE: Final = 'instance=~"$instance"'
CHOSEN: Final = f'{HERE}, variant=~"$variant"'
ONE: Final = f'{HERE}, variant="$variant"'


def rate(metric: str, selector: str, *by: str) -> str:
    over = f" by ({', '.join(by)}) " if by else ""
    return f"sum{over}(rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, metric: str, selector: str, *by: str) -> str:
    buckets = rate(f"slimserve_{metric}_seconds_bucket", selector, *by, "le")
    return f"histogram_quantile({share}, {buckets})"


def quantiles(metric: str, selector: str) -> tuple[Query, ...]:
    """The median, the slowest tenth and the slowest hundredth of one variant."""
    return tuple(
        Query(expr=quantile(share, metric, selector), legend=f"p{share * 100:.0f}") for share in (0.5, 0.9, 0.99)
    )


def per(label: str, expr: str) -> tuple[Query, ...]:
    """One line per value of a label."""
    return (Query(expr=expr, legend=f"{{{{{label}}}}}"),)


def latency(title: str, share: float, metric: str, selector: str, what: str) -> Panel:
    """A quantile of seconds, by variant."""
    expr = quantile(share, metric, selector, "variant")
    return Panel(title=f"{title}, p{share * 100:.0f}", what=what, unit="s", queries=per("variant", expr))


def stat(title: str, what: str, expr: str, unit: str = "short") -> Panel:
    return Panel(title=title, what=what, kind="stat", unit=unit, width=4, height=4, queries=(Query(expr=expr),))
