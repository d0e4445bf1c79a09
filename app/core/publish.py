"""The last step of a job: one rename, one transaction; and its completion after a crash between the two.

A variant is visible if and only if it is complete and verified.
"""

import logging
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Final

import msgspec

from app.core.job_documents import MEASURE, SPEED, VERIFICATION, QuantizeSpec, encode, job_object, result_of, spec_of
from app.schemas.jobs import JobResultObject
from app.schemas.reports import MeasurementObject
from app.store import events, folders, jobs, measurements
from app.store import variants as variant_rows
from app.store.jobs import JobRow, JobState
from app.store.variants import VariantRow
from workers.protocol.messages import CompressResult

logger = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
MANIFEST: Final = "manifest.json"


def staging_of(data_dir: Path, job_id: str) -> Path:
    """Where a job writes; its result is the folder `out` inside."""
    return data_dir / "staging" / job_id


def final_of(data_dir: Path, job_id: str) -> Path:
    """Where its result lies from the rename on."""
    return data_dir / "variants" / job_id


def move_into_place(data_dir: Path, job_id: str) -> None:
    """The rename; the job needs nothing else of what it kept. Raises OSError."""
    folders.publish(staging_of(data_dir, job_id) / "out", final_of(data_dir, job_id))
    shutil.rmtree(staging_of(data_dir, job_id), ignore_errors=True)


def record(connection: sqlite3.Connection, job: JobRow) -> tuple[VariantRow, str | None]:
    """The transaction: variant, its quality and the job's end, all or nothing.

    Returns the new row and the folder of the variant that it replaces, if there was one.
    """
    spec, result = spec_of(job), result_of(job)
    assert isinstance(spec, QuantizeSpec)
    assert isinstance(result, JobResultObject), "a publishing job has its result"
    row = VariantRow(
        id=spec.variant,
        base=spec.base,
        method=spec.method,
        kind="compressed",
        dir=job.id,
        format=result.format,
        bits=result.bits,
        weight_bytes=result.weight_bytes,
        disk_bytes=result.disk_bytes,
        created=int(time.time()),
    )
    replaced = next((old.dir for old in variant_rows.select_all(connection) if old.id == row.id), None)
    variant_rows.delete(connection, row.id)
    variant_rows.insert(connection, row)
    quality = {"kl_mean": result.kl_mean, "kl_max": result.kl_max, "top1_agreement": result.top1_agreement}
    measurements.put(connection, row.id, VERIFICATION, quality)
    note(connection, jobs.finish(connection, job.id, JobState.PUBLISHING, JobState.SUCCEEDED))
    return row, replaced


def record_measurement(connection: sqlite3.Connection, job: JobRow) -> None:
    """The transaction that ends a measurement: its numbers, behind earlier ones, and the job's end."""
    result = result_of(job)
    assert isinstance(result, MeasurementObject), "a publishing job has its result"
    if any(row.id == job.variant for row in variant_rows.select_all(connection)):
        for kind, values in ((MEASURE, result.quality), (SPEED, result.speed)):
            if values is not None:
                measurements.put(
                    connection,
                    job.variant,
                    kind,
                    msgspec.to_builtins(values),
                    device=result.environment.device,
                    environment=msgspec.to_builtins(result.environment),
                )
    note(connection, jobs.finish(connection, job.id, JobState.PUBLISHING, JobState.SUCCEEDED))


def move_to_quarantine(data_dir: Path, job_id: str) -> None:
    """Keep what a job has made and what is not good enough, where nothing is served from. Raises OSError."""
    target = data_dir / "quarantine" / job_id
    # An attempt before a crash may have come this far.
    folders.discard(target, data_dir)
    folders.publish(staging_of(data_dir, job_id) / "out", target)


def record_quarantine(
    connection: sqlite3.Connection, job: JobRow, result: CompressResult, code: str, reason: str
) -> VariantRow:
    """The transaction: the variant with its reason, and the job's failure."""
    spec = spec_of(job)
    assert isinstance(spec, QuantizeSpec)
    row = VariantRow(
        id=spec.variant,
        base=spec.base,
        method=spec.method,
        kind="compressed",
        dir=job.id,
        format=result.format,
        bits=result.bits,
        weight_bytes=result.weight_bytes,
        disk_bytes=result.disk_bytes,
        created=int(time.time()),
        quarantine_reason=reason,
    )
    variant_rows.insert(connection, row)
    failed = jobs.finish(connection, job.id, job.state, JobState.FAILED, error_code=code, error_message=reason)
    note(connection, failed)
    return row


def note(connection: sqlite3.Connection, job: JobRow) -> JobRow:
    """Append the job's new state to its events, in the transaction that moved it."""
    events.append(connection, job.id, "state", encode(job_object(job)))
    return job


def recover(connection: sqlite3.Connection, data_dir: Path) -> None:
    """Bring jobs, rows and folders together after a crash at any moment; nothing is running now."""
    for job in jobs.select_open(connection):
        if job.state is JobState.PUBLISHING:
            _finish_publishing(connection, data_dir, job)
        elif job.state is JobState.RUNNING:
            _requeue(connection, job)
    _empty_staging(connection, data_dir)
    folders.empty(data_dir / "trash")
    known = set()
    for row in variant_rows.select_all(connection):
        kept_in = "variants" if row.quarantine_reason is None else "quarantine"
        if row.dir is not None and not (data_dir / kept_in / row.dir / MANIFEST).is_file():
            # A delete that was cut off between its rename and its transaction.
            logger.error("the files of a variant are gone; it is forgotten", extra={"variant": row.id})
            variant_rows.delete(connection, row.id)
        else:
            known.add(row.dir)
    for folder in (data_dir / "variants").iterdir():
        if folder.name not in known:
            moved = folders.quarantine(folder, data_dir)
            logger.warning("a folder of no variant was moved to quarantine/%s", moved.name)


def _empty_staging(connection: sqlite3.Connection, data_dir: Path) -> None:
    """Remove what no job will ask for; the finished layers of a queued job are what it continues from."""
    queued = {job.id for job in jobs.select_open(connection) if job.state is JobState.QUEUED}
    folders.empty(data_dir / "staging", keep=queued)


def _finish_publishing(connection: sqlite3.Connection, data_dir: Path, job: JobRow) -> None:
    if job.kind == MEASURE:
        record_measurement(connection, job)
        return
    if not (final_of(data_dir, job.id) / MANIFEST).is_file():
        if not (staging_of(data_dir, job.id) / "out" / MANIFEST).is_file():
            _requeue(connection, job)
            return
        move_into_place(data_dir, job.id)
    record(connection, job)
    logger.info("publishing finished after a restart", extra={"job_id": job.id})


def _requeue(connection: sqlite3.Connection, job: JobRow) -> None:
    if job.attempt >= MAX_ATTEMPTS:
        message = f"The job was interrupted in each of {job.attempt} attempts, the last time by the end of the server."
        failed = jobs.finish(
            connection, job.id, job.state, JobState.FAILED, error_code="interrupted", error_message=message
        )
        note(connection, failed)
        return
    note(connection, jobs.requeue(connection, job.id, job.state, is_attempt_lost=True))
    logger.info("an interrupted job is queued again", extra={"job_id": job.id, "attempt": job.attempt})
