"""What is being compressed and measured."""

from typing import Final

from expressions import HERE, INSTANCE, stat
from grafana import Dashboard, Panel, Query

_ENDED: Final = "succeeded|failed|cancelled"


def _job_gauge(metric: str) -> tuple[Query, ...]:
    return (Query(expr=f"slimserve_job_{metric}{{{HERE}}}", legend="{{kind}} {{job}}"),)


JOBS: Final = Dashboard(
    name="jobs",
    title="slimserve: jobs",
    what="What is being compressed and measured, and did it work?",
    variables=(INSTANCE,),
    panels=(
        *(
            stat(
                title,
                what,
                f'sum(slimserve_jobs{{state="{state}", {HERE}}})',
            )
            for title, state, what in (
                ("Queued", "queued", "Jobs that wait; one runs at a time."),
                ("Running", "running", "Jobs that run."),
                ("Succeeded", "succeeded", "Jobs that ended well, of all that are stored."),
                ("Failed", "failed", "Jobs that failed, of all that are stored; GET /v1/jobs says why."),
                ("Cancelled", "cancelled", "Jobs that somebody cancelled, of all that are stored."),
                ("Publishing", "publishing", "Jobs whose result is being put in place."),
            )
        ),
        Panel(
            title="Progress",
            what="Done share of the running job.",
            unit="percentunit",
            width=12,
            queries=_job_gauge("progress_ratio"),
        ),
        Panel(
            title="Time to the end of the phase",
            what="As the running job expects it; none where a phase cannot tell.",
            unit="s",
            width=12,
            queries=_job_gauge("eta_seconds"),
        ),
        Panel(
            title="Memory of the job",
            what="Resident bytes of its process.",
            unit="bytes",
            width=12,
            queries=_job_gauge("memory_bytes"),
        ),
        Panel(
            title="Jobs that ended",
            what="Within the last hour, by kind and outcome.",
            width=12,
            queries=(
                Query(
                    expr=f'sum by (kind, state) (delta(slimserve_jobs{{state=~"{_ENDED}", {HERE}}}[1h]))',
                    legend="{{kind}} {{state}}",
                ),
            ),
        ),
    ),
)
