"""The transaction that takes a job in, or finds the one that an Idempotency-Key means."""

import sqlite3
from typing import Final

from app.core import publish
from app.errors import ApiError, Conflict
from app.store import jobs as job_rows
from app.store.jobs import JobRow

KEY_LIFETIME_S: Final = 24 * 3600


def accept(connection: sqlite3.Connection, row: JobRow, refusal: ApiError | None) -> JobRow:
    """Insert the job, or return the one that was made with its idempotency key."""
    job_rows.forget_keys_before(connection, row.created - KEY_LIFETIME_S)
    known = job_rows.select_by_key(connection, row.idem_key) if row.idem_key is not None else None
    if known is not None:
        if known.spec_hash != row.spec_hash:
            raise Conflict("This Idempotency-Key was used with another body.", code="idempotency_mismatch")
        return known
    if refusal is not None:
        raise refusal
    for other in job_rows.select_open(connection):
        if other.variant == row.variant:
            raise Conflict(f"Job '{other.id}' is already at work on '{row.variant}'.", code="job_running")
    job_rows.insert(connection, row)
    return publish.note(connection, row)
