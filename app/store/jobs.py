"""Rows of `jobs`. A move from state to state names the state it comes from, and must hit exactly that row."""

import sqlite3
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

COLUMNS: Final = (
    "id, kind, spec_json, spec_hash, idem_key, variant, state, attempt,"
    " error_code, error_message, result_json, created, started, finished"
)
_IS_OPEN: Final = "state IN ('queued', 'running', 'publishing')"


class JobState(StrEnum):
    """Where a job stands. `publishing`: verified, its files and its row are being put in place."""

    QUEUED = "queued"
    RUNNING = "running"
    PUBLISHING = "publishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True if nothing will ever happen to the job again."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


NEXT: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset({JobState.PUBLISHING, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}),
    JobState.PUBLISHING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class StaleJob(Exception):
    """The job was not in the state that the move starts from: someone else has moved it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job. *_json: documents whose shape app.core.jobs knows. Times are Unix seconds."""

    id: str
    kind: str
    spec_json: str
    spec_hash: str
    idem_key: str | None
    variant: str
    state: JobState
    attempt: int
    error_code: str | None
    error_message: str | None
    result_json: str | None
    created: float
    started: float | None
    finished: float | None


def insert(connection: sqlite3.Connection, row: JobRow) -> None:
    """A new job. Raises sqlite3.IntegrityError if the idempotency key is taken."""
    connection.execute(
        "INSERT INTO jobs (id, kind, spec_json, spec_hash, idem_key, variant, state, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (row.id, row.kind, row.spec_json, row.spec_hash, row.idem_key, row.variant, row.state, row.created),
    )


def select_newest(connection: sqlite3.Connection, limit: int | None = None) -> list[JobRow]:
    """Newest first: every job that has not ended, and this many of the others, or all."""
    # to SQLite a negative limit is none
    ended = f"SELECT id FROM jobs WHERE NOT {_IS_OPEN} ORDER BY created DESC, id DESC LIMIT ?"
    query = f"SELECT {COLUMNS} FROM jobs WHERE {_IS_OPEN} OR id IN ({ended}) ORDER BY created DESC, id DESC"
    return [_row(row) for row in connection.execute(query, [-1 if limit is None else limit])]


def select_open(connection: sqlite3.Connection) -> list[JobRow]:
    """Jobs that have not ended, oldest first."""
    query = f"SELECT {COLUMNS} FROM jobs WHERE {_IS_OPEN} ORDER BY created, id"
    return [_row(row) for row in connection.execute(query)]


def count(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """How many there are, by kind and state; what there is none of is left out."""
    rows = connection.execute("SELECT kind, state, COUNT(*) FROM jobs GROUP BY kind, state")
    return {(kind, state): number for kind, state, number in rows}


def select_one(connection: sqlite3.Connection, job_id: str) -> JobRow | None:
    """The job of this id."""
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return _row(row) if row is not None else None


def select_by_key(connection: sqlite3.Connection, idem_key: str) -> JobRow | None:
    """The job that was made with this idempotency key."""
    row = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE idem_key = ?", (idem_key,)).fetchone()
    return _row(row) if row is not None else None


def forget_keys_before(connection: sqlite3.Connection, created: float) -> None:
    """Idempotency keys of jobs made before this moment may be used again."""
    connection.execute("UPDATE jobs SET idem_key = NULL WHERE idem_key IS NOT NULL AND created < ?", (created,))


def start(connection: sqlite3.Connection, job_id: str) -> JobRow:
    """queued -> running; counts the attempt."""
    _hit_one(
        connection.execute(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, started = ? WHERE id = ? AND state = 'queued'",
            (time.time(), job_id),
        ),
        job_id,
    )
    return _the(connection, job_id)


def requeue(connection: sqlite3.Connection, job_id: str, before: JobState, *, is_attempt_lost: bool) -> JobRow:
    """running or publishing -> queued, after an interruption; a graceful one gives the attempt back."""
    _check(before, JobState.QUEUED)
    _hit_one(
        connection.execute(
            "UPDATE jobs SET state = 'queued', started = NULL, attempt = attempt - ? WHERE id = ? AND state = ?",
            (0 if is_attempt_lost else 1, job_id, before),
        ),
        job_id,
    )
    return _the(connection, job_id)


def begin_publishing(connection: sqlite3.Connection, job_id: str, result_json: str) -> JobRow:
    """running -> publishing, with all that the last step needs even if another server has to take it."""
    _hit_one(
        connection.execute(
            "UPDATE jobs SET state = 'publishing', result_json = ? WHERE id = ? AND state = 'running'",
            (result_json, job_id),
        ),
        job_id,
    )
    return _the(connection, job_id)


def finish(
    connection: sqlite3.Connection,
    job_id: str,
    before: JobState,
    after: JobState,
    *,
    error_code: str | None = None,
    error_message: str | None = None,
) -> JobRow:
    """before -> a final state."""
    _check(before, after)
    _hit_one(
        connection.execute(
            "UPDATE jobs SET state = ?, error_code = ?, error_message = ?, finished = ? WHERE id = ? AND state = ?",
            (after, error_code, error_message, time.time(), job_id, before),
        ),
        job_id,
    )
    return _the(connection, job_id)


def _check(before: JobState, after: JobState) -> None:
    if after not in NEXT[before]:
        raise StaleJob(f"no job goes from {before} to {after}")


def _hit_one(cursor: sqlite3.Cursor, job_id: str) -> None:
    if cursor.rowcount != 1:
        raise StaleJob(f"job {job_id} is in another state")


def _the(connection: sqlite3.Connection, job_id: str) -> JobRow:
    row = select_one(connection, job_id)
    assert row is not None
    return row


def _row(row: sqlite3.Row) -> JobRow:
    return JobRow(**{**dict(row), "state": JobState(row["state"])})
