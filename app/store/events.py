"""Rows of `job_events`: what an event stream replays. Numbered from 1 without a gap, per job."""

import sqlite3
import time
from dataclasses import dataclass
from typing import Final

MAX_EVENTS: Final = 10_000
# Kept free of progress, so that a job's last states always find a place.
_RESERVED_FOR_STATES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """seq: the `id` of the server-sent event. type: `state` or `progress`."""

    seq: int
    type: str
    data_json: str


def append(connection: sqlite3.Connection, job_id: str, type_: str, data_json: str) -> None:
    """The job's next event. Progress past the cap is dropped; the job's own row still tells it."""
    query = "SELECT COALESCE(MAX(seq), 0) FROM job_events WHERE job_id = ?"
    last = connection.execute(query, (job_id,)).fetchone()[0]
    if type_ == "progress" and last >= MAX_EVENTS - _RESERVED_FOR_STATES:
        return
    connection.execute(
        "INSERT INTO job_events (job_id, seq, type, data_json, created) VALUES (?, ?, ?, ?, ?)",
        (job_id, last + 1, type_, data_json, time.time()),
    )


def select_after(connection: sqlite3.Connection, job_id: str, seq: int, limit: int = 500) -> list[EventRow]:
    """The job's events behind `seq`, oldest first."""
    rows = connection.execute(
        "SELECT seq, type, data_json FROM job_events WHERE job_id = ? AND seq > ? ORDER BY seq LIMIT ?",
        (job_id, seq, limit),
    )
    return [EventRow(**dict(row)) for row in rows]
