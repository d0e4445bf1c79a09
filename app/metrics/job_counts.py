"""How many jobs are in which state, of what the store told last."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class JobCounts(Collector):
    """The number of jobs by kind and state; jobs that have ended are among them for as long as they are stored."""

    def __init__(self) -> None:
        self._counts: Mapping[tuple[str, str], int] = {}

    def update(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Show these from now on: (kind, state) to a number."""
        self._counts = counts

    def describe(self) -> list[Metric]:
        """Empty: registering must not look anything up."""
        return []

    def collect(self) -> Iterator[Metric]:
        """As they were told last."""
        jobs = GaugeMetricFamily("slimserve_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for (kind, state), number in sorted(self._counts.items()):
            jobs.add_metric([kind, state], number)
        yield jobs
