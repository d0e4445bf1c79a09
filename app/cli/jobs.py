"""`slimserve jobs`: list jobs, show one, follow it to its end, or cancel it. Also how any command follows a job."""

import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.client import Client
from app.cli.options import JsonOption, client_of
from app.cli.terminal import CommandFailed, console, note, say, say_table, write_json

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(jobs)


def jobs(
    ctx: typer.Context,
    job: Annotated[str | None, typer.Argument(help="Id of one job.", show_default="all jobs")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", help="Show the job's progress until it ends.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop the job; it leaves no files behind.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the jobs, or show, follow or cancel one."""
    client = client_of(ctx)
    if job is None:
        if follow_it or cancel:
            raise CommandFailed("--follow and --cancel need the id of a job: slimserve jobs JOB --follow", exit_code=2)
        _show_all(client.get("/v1/jobs")["data"], as_json=as_json)
        return
    if cancel:
        found = client.post(f"/v1/jobs/{job}/cancel", {})
    elif follow_it:
        found = follow(client, job)
    else:
        found = client.get(f"/v1/jobs/{job}")
    if as_json:
        write_json(found)
    else:
        say(describe(found))


def describe(job: Mapping[str, Any]) -> str:
    """One line on one job."""
    line = f"{job['id']}: {job['kind']} {job['variant']} {job['state']}"
    if job["state"] == "running" and job.get("progress"):
        line += f", {job['progress']['phase']} {job['progress']['done']} of {job['progress']['total']}"
    return line + (f" ({job['error']['message']})" if job.get("error") else "")


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Show a job's progress, from its events, until it ends; its last state."""
    latest: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
    with _progress_view(latest) as view:
        for event in _events_to_the_end(client, job_id):
            if event["kind"] == "state":
                latest = event["data"]
                view.state(latest["state"])
            elif event["kind"] == "progress":
                view.progress(event["data"])
    return latest


def _events_to_the_end(client: Client, job_id: str) -> Iterator[dict[str, Any]]:
    """Events of the job; a stream that breaks off before the final state is taken up where it ended."""
    last_id: str | None = None
    while True:
        seen_before = last_id
        for event in client.events("GET", f"/v1/jobs/{job_id}/events", last_event_id=last_id):
            last_id = event.id or last_id
            data = event.json()
            yield {"kind": event.event, "data": data}
            if event.event == "state" and data["state"] in FINAL_STATES:
                return
        if last_id == seen_before:
            raise CommandFailed(f"the events of {job_id} ended before the job did; see `slimserve jobs {job_id}`")


class _BarView:
    """A progress bar, for a terminal."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console(stderr=True))
        self._variant = job["variant"]
        self._task = self._bar.add_task(f"{self._variant} {job['state']}", total=None)

    def __enter__(self) -> "_BarView":
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def state(self, state: str) -> None:
        """The job has changed its state."""
        self._bar.update(self._task, description=f"{self._variant} {state}")
        if state == "succeeded":
            self._bar.update(self._task, total=1, completed=1)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """The job has gone one step."""
        self._bar.update(
            self._task,
            description=f"{self._variant} {step(progress)}",
            completed=progress["done"],
            total=progress["total"] or None,
        )


class _LineView:
    """Plain lines, one for each new phase and each further tenth, for a pipe or a log."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._variant = job["variant"]
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> "_LineView":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def state(self, state: str) -> None:
        """The job has changed its state."""
        note(f"{self._variant}: {state}")

    def progress(self, progress: Mapping[str, Any]) -> None:
        """The job has gone one step."""
        total = progress["total"]
        tenth = 10 * progress["done"] // total if total else 0
        if (progress["phase"], tenth) != self._last:
            self._last = (progress["phase"], tenth)
            note(f"{self._variant}: {progress['phase']} {progress['done']} of {total} {_detail(progress)}".rstrip())


def step(progress: Mapping[str, Any]) -> str:
    """Phase, layer, module, its error before and after, and the time that the phase has left."""
    return f"{progress['phase']} {_detail(progress)}".rstrip()


def _detail(progress: Mapping[str, Any]) -> str:
    # Events that an earlier version has stored lack some of this.
    parts = []
    if progress.get("layer") is not None:
        parts.append(f"layer {progress['layer'] + 1} of {progress['num_layers']}")
    if progress.get("module") is not None:
        parts.append(progress["module"])
    if progress.get("error_after") is not None:
        before = "" if progress["error_before"] is None else f"{progress['error_before']:.2e} to "
        parts.append(f"error {before}{progress['error_after']:.2e}")
    if progress.get("eta_s") is not None:
        parts.append(f"{timedelta(seconds=round(progress['eta_s']))} left")
    return ", ".join(parts)


def _progress_view(job: Mapping[str, Any]) -> _BarView | _LineView:
    return _BarView(job) if sys.stderr.isatty() else _LineView(job)


def _show_all(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        write_json(found)
        return
    if not found:
        note("no jobs yet; start one with `slimserve quantize MODEL`")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "kind", "variant", "state", "progress"):
        table.add_column(heading, no_wrap=True)
    for one in found:
        progress = one.get("progress") or {}
        ratio = progress.get("ratio")
        table.add_row(
            one["id"], one["kind"], one["variant"], one["state"], "-" if ratio is None else f"{100 * ratio:.0f} %"
        )
    say_table(table)
