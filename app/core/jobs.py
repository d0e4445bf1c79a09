"""Compression jobs: accepted when they are on disk, run one at a time, watched, cancelled, finished after a crash."""

import asyncio
import logging
import shutil
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Concatenate, Final, ParamSpec

from app.core import publish
from app.core.acceptance import accept
from app.core.catalog import Catalog
from app.core.job_documents import JobDocument, QuantizeSpec, encode, job_object, kind_of, progress_object, spec_of
from app.core.job_run import LiveJob, RunCancelled, RunTools
from app.core.measurement import MeasureRun, measure_of
from app.core.neighbours import Neighbours
from app.core.quantization import QuantizeRun, check_disk
from app.core.residency import Residency
from app.core.variants import IDLE, Quality
from app.errors import ApiError, Conflict, NotFound
from app.schemas.jobs import JobObject, JobResultObject, ProgressObject
from app.schemas.reports import MeasurementObject
from app.settings import Settings
from app.store import events, folders
from app.store import jobs as job_rows
from app.store.database import Store
from app.store.events import EventRow
from app.store.jobs import JobRow, JobState, StaleJob
from app.supervisor.job import JobFailed
from app.supervisor.stream import WorkerGone
from app.supervisor.supervisor import Supervisor
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import JobProgress

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Run = QuantizeRun | MeasureRun

# A tick becomes an event at most this often; the job itself always tells the newest.
EVENT_INTERVAL_S: Final = 0.25
# Compressed modules of one attempt that have an event each all the same. Mixtures of experts have more, and the events
# of a job are counted.
MODULE_EVENTS: Final = 2000


class Jobs:
    """The queue, and the one task that works on it."""

    def __init__(
        self, settings: Settings, store: Store, supervisor: Supervisor, catalog: Catalog, residency: Residency
    ) -> None:
        self._settings = settings
        self._store = store
        self._supervisor = supervisor
        self._catalog = catalog
        self._residency = residency
        self._neighbours = Neighbours(catalog.list)
        supervisor.observe_steps(self._neighbours.observe)
        self._queued = asyncio.Event()
        self._news = asyncio.Event()
        self._run: Run | None = None
        self._progress: ProgressObject | None = None
        self._event_due_at_s = 0.0
        self._num_modules = 0
        self._is_stopping = False
        self._worker: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()

    async def recover(self) -> None:
        """Before anything else reads the store: finish or queue again what a dead server has left."""
        await self._store.run(publish.recover, self._store.data_dir)

    def start(self) -> None:
        """Begin to work on the queue."""
        self._worker = asyncio.get_running_loop().create_task(self._work())
        self._worker.add_done_callback(_log_death)

    async def stop(self) -> None:
        """Stop the running job, which goes back into the queue for the next server."""
        self._is_stopping = True
        self._queued.set()
        if self._run is not None:
            await self._run.cancel()
        if self._worker is not None:
            await asyncio.wait({self._worker})
        if self._writes:
            await asyncio.wait(self._writes)

    def running(self) -> list[LiveJob]:
        """What runs now, for the metrics."""
        run, tick = self._run, self._progress
        if run is None:
            return []
        if tick is None:
            return [LiveJob(id=run.job_id, kind=run.kind)]
        return [LiveJob(id=run.job_id, kind=run.kind, ratio=tick.ratio, rss_bytes=tick.rss_bytes, eta_s=tick.eta_s)]

    async def submit(self, spec: JobDocument, idem_key: str | None) -> JobObject:
        """Accept a job; it is on disk when this returns. The same key with the same spec returns the same job.

        Raises ApiError: key used for something else, variant exists, job under way, no room on disk.
        """
        refusal = self._refusal(spec) if isinstance(spec, QuantizeSpec) else None
        row = JobRow(
            id=str(uuid.uuid4()),
            kind=kind_of(spec),
            spec_json=encode(spec),
            spec_hash=spec.digest(),
            idem_key=idem_key,
            variant=spec.variant,
            state=JobState.QUEUED,
            attempt=0,
            error_code=None,
            error_message=None,
            result_json=None,
            created=time.time(),
            started=None,
            finished=None,
        )
        accepted = await self._store.run(accept, row, refusal)
        self._queued.set()
        logger.info("job accepted", extra={"job_id": accepted.id, "variant": spec.variant})
        return self._object(accepted)

    async def list(self, limit: int | None = None) -> list[JobObject]:
        """Newest first: every job that has not ended, and this many of the others, or all."""
        rows = await self._store.run(job_rows.select_newest, limit)
        return [self._object(row) for row in rows]

    async def get(self, job_id: str) -> JobObject:
        """One job. Raises NotFound."""
        return self._object(await self._row(job_id))

    async def cancel(self, job_id: str) -> JobObject:
        """End a job and remove what it wrote. Raises NotFound, and Conflict if it has ended or is being published."""
        row = await self._row(job_id)
        if row.state is JobState.QUEUED:
            try:
                cancelled = await self._move(job_rows.finish, job_id, JobState.QUEUED, JobState.CANCELLED)
            except StaleJob:
                row = await self._row(job_id)
            else:
                # of an attempt that a former server began
                await asyncio.to_thread(shutil.rmtree, publish.staging_of(self._store.data_dir, job_id), True)
                return self._object(cancelled)
        run = self._run
        if row.state is JobState.RUNNING and run is not None and run.job_id == job_id:
            await run.cancel()
            await run.ended.wait()
            row = await self._row(job_id)
            # Its process died first, and the next attempt is due.
            return self._object(row) if row.state.is_final else await self.cancel(job_id)
        raise Conflict(f"Job '{job_id}' is {row.state}; it cannot be cancelled any more.", code="job_finished")

    async def events(self, job_id: str, after: int, ping_s: float) -> AsyncIterator[EventRow | None]:
        """The job's events behind number `after`, to its end; None when nothing happened for ping_s."""
        while True:
            news = self._news
            # asked before the events are read: a job's last one is stored together with its end
            is_over = (await self._row(job_id)).state.is_final
            rows = await self._store.run(events.select_after, job_id, after)
            for row in rows:
                after = row.seq
                yield row
            if rows:
                continue
            if is_over:
                return
            try:
                await asyncio.wait_for(news.wait(), ping_s)
            except TimeoutError:
                yield None

    async def _work(self) -> None:
        while not self._is_stopping:
            self._queued.clear()
            queued = [row for row in await self._store.run(job_rows.select_open) if row.state is JobState.QUEUED]
            if not queued:
                await self._queued.wait()
                continue
            try:
                row = await self._move(job_rows.start, queued[0].id)
            except StaleJob:
                continue
            await self._run_one(row)

    async def _run_one(self, row: JobRow) -> None:
        run = self._run_of(row)
        if isinstance(run, tuple):
            await self._fail(row.id, *run)
            return
        self._progress, self._event_due_at_s, self._num_modules = None, 0.0, 0
        self._run = run
        failure: tuple[str, str] | None = None
        try:
            failure = await self._attempt(row, run)
        finally:
            # The finished layers are left to the next attempt, or to the next server.
            is_next_attempt_due = (await self._row(row.id)).state is JobState.QUEUED
            if not self._is_stopping and not is_next_attempt_due:
                await asyncio.to_thread(shutil.rmtree, publish.staging_of(self._store.data_dir, row.id), True)
            if failure is not None and isinstance(run, MeasureRun) and self._catalog.find(row.variant) is None:
                # whatever it stumbled over
                failure = "model_not_found", f"Variant '{row.variant}' was deleted while it was measured."
            if failure is not None:
                await self._fail(row.id, *failure)
            self._run = self._progress = None
            run.ended.set()

    def _run_of(self, row: JobRow) -> Run | tuple[str, str]:
        """The run that does this job, or code and message of why there is none."""
        spec = spec_of(row)
        base, entry = self._catalog.bases.get(spec.base), self._catalog.find(spec.variant)
        if base is None:
            return "base_not_found", f"Base '{spec.base}' was deleted."
        tools = RunTools(
            settings=self._settings,
            supervisor=self._supervisor,
            residency=self._residency,
            neighbours=self._neighbours,
            on_progress=lambda tick: self._tick(row, tick),
        )
        if isinstance(spec, QuantizeSpec):
            return QuantizeRun(row.id, spec, base, tools)
        if entry is None:
            return "model_not_found", f"Variant '{spec.variant}' was deleted."
        return MeasureRun(row.id, spec, entry, base, tools)

    async def _attempt(self, row: JobRow, run: Run) -> tuple[str, str] | None:
        """Work on the job to its end. Returns code and message of a failure that nobody has stored yet."""
        try:
            self._catalog.bases.check_unchanged(run.base)
            if isinstance(run, MeasureRun):
                await self._keep_measurement(row, await run.execute())
            else:
                await self._publish(row, await run.execute(self._catalog.bases.text_folder(run.base)))
        except RunCancelled:
            await self._after_cancel(row)
        except ApiError as error:
            return error.code or "internal", error.message
        except JobFailed as error:
            if error.code is WorkerErrorCode.VERIFICATION_FAILED and isinstance(run, QuantizeRun):
                return await self._quarantine(row, run, error)
            return error.code.value, error.message
        except WorkerGone as gone:
            return await self._try_again(row, gone.reason)
        except OSError as error:
            return "disk_error", f"The job could not write its files: {error.strerror}."
        return None

    async def _publish(self, row: JobRow, result: JobResultObject) -> None:
        old = self._catalog.find(row.variant)
        if old is not None and old.life.state not in IDLE:
            raise Conflict(f"'{row.variant}' was loaded while its successor was made.", code="variant_busy")
        publishing = await self._move(job_rows.begin_publishing, row.id, encode(result))
        data_dir = self._store.data_dir
        await asyncio.to_thread(publish.move_into_place, data_dir, row.id)
        variant, replaced = await self._store.run(publish.record, publishing)
        self._tell()
        self._catalog.published(variant, Quality(kl_mean=result.kl_mean, top1_agreement=result.top1_agreement))
        logger.info("variant published", extra={"variant": variant.id, "job_id": row.id})
        if replaced is not None:
            for place in ("variants", "quarantine"):
                await asyncio.to_thread(folders.discard, data_dir / place / replaced, data_dir)
        await self._measure(variant.id)

    async def _measure(self, variant_id: str) -> None:
        """Queue the measurement of a new variant, if the settings want one and nobody has asked for another already."""
        try:
            wanted = measure_of(variant_id, self._catalog, self._settings)
            if wanted is not None:
                await self.submit(wanted, None)
        except ApiError as error:
            logger.warning("not measured: %s", error.message, extra={"variant": variant_id})

    async def _keep_measurement(self, row: JobRow, result: MeasurementObject) -> None:
        publishing = await self._move(job_rows.begin_publishing, row.id, encode(result))
        await self._store.run(publish.record_measurement, publishing)
        self._tell()
        if self._catalog.find(row.variant) is not None:
            self._catalog.measured(row.variant, result)

    async def _quarantine(self, row: JobRow, run: QuantizeRun, error: JobFailed) -> tuple[str, str] | None:
        """Keep a variant that is not good enough, unless another has its name. Returns a failure still to tell."""
        failure = (error.code.value, error.message)
        if run.compressed is None or self._catalog.find(row.variant) is not None:
            return failure
        try:
            await asyncio.to_thread(publish.move_to_quarantine, self._store.data_dir, row.id)
        except OSError:
            logger.exception("a bad variant could not be kept", extra={"job_id": row.id})
            return failure
        variant = await self._store.run(publish.record_quarantine, row, run.compressed, *failure)
        self._catalog.published(variant, None)
        self._tell()
        logger.error("variant quarantined: %s", error.message, extra={"variant": row.variant, "job_id": row.id})
        return None

    async def _try_again(self, row: JobRow, reason: str) -> tuple[str, str] | None:
        """Queue a job whose process died, to go on behind its last finished layer. Returns a failure still to tell."""
        if row.attempt >= publish.MAX_ATTEMPTS:
            return "job_crashed", f"The job was interrupted in each of {row.attempt} attempts; the last time, {reason}."
        logger.warning("job process died, the job goes on: %s", reason, extra={"job_id": row.id})
        await self._move(job_rows.requeue, row.id, JobState.RUNNING, is_attempt_lost=True)
        return None

    async def _after_cancel(self, row: JobRow) -> None:
        if self._is_stopping:
            await self._move(job_rows.requeue, row.id, JobState.RUNNING, is_attempt_lost=False)
        else:
            await self._move(job_rows.finish, row.id, JobState.RUNNING, JobState.CANCELLED)

    async def _fail(self, job_id: str, code: str, message: str) -> None:
        logger.error("job failed: %s", message, extra={"job_id": job_id, "code": code})
        state = (await self._row(job_id)).state
        await self._move(job_rows.finish, job_id, state, JobState.FAILED, error_code=code, error_message=message)

    async def _move(
        self,
        transition: Callable[Concatenate[sqlite3.Connection, P], JobRow],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> JobRow:
        """One transition and its event in one transaction. Raises StaleJob if the job is in another state."""

        def work(connection: sqlite3.Connection) -> JobRow:
            return publish.note(connection, transition(connection, *args, **kwargs))

        row = await self._store.run(work)
        self._tell()
        logger.info("job is %s", row.state, extra={"job_id": row.id, "variant": row.variant})
        return row

    def _tick(self, row: JobRow, tick: JobProgress) -> None:
        is_news = self._progress is None or self._progress.phase != tick.phase or tick.done >= tick.total
        if tick.error_after is not None:
            self._num_modules += 1
            is_news = is_news or self._num_modules <= MODULE_EVENTS
        self._progress = progress_object(row.kind, tick)
        now_s = time.monotonic()
        if is_news or now_s >= self._event_due_at_s:
            self._event_due_at_s = now_s + EVENT_INTERVAL_S
            task = asyncio.get_running_loop().create_task(self._store_tick(row.id, encode(self._progress)))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _store_tick(self, job_id: str, data_json: str) -> None:
        await self._store.run(events.append, job_id, "progress", data_json)
        self._tell()

    def _tell(self) -> None:
        """Wake everyone who follows a job."""
        self._news.set()
        self._news = asyncio.Event()

    def _refusal(self, spec: QuantizeSpec) -> ApiError | None:
        """Why this job cannot be accepted, unless it has been already."""
        old = self._catalog.find(spec.variant)
        if old is not None and not spec.force:
            return Conflict(
                f"Variant '{spec.variant}' exists; give another 'name', or say \"force\": true to replace it.",
                code="variant_exists",
            )
        if old is not None and old.life.state not in IDLE:
            return Conflict(f"Variant '{spec.variant}' is loaded; unload it first.", code="variant_busy")
        base = self._catalog.bases.get(spec.base)
        assert base is not None, "resolved against the catalog"
        try:
            self._catalog.bases.check_unchanged(base)
            check_disk(base, spec.recipe, self._store.data_dir)
        except ApiError as error:
            return error
        return None

    def _object(self, row: JobRow) -> JobObject:
        is_running = self._run is not None and self._run.job_id == row.id
        return job_object(row, self._progress if is_running else None)

    async def _row(self, job_id: str) -> JobRow:
        row = await self._store.run(job_rows.select_one, job_id)
        if row is None:
            raise NotFound(f"No job '{job_id[:64]}'; GET /v1/jobs lists all of them.", code="job_not_found")
        return row


def _log_death(worker: "asyncio.Task[None]") -> None:
    if not worker.cancelled() and worker.exception() is not None:
        logger.critical("the job queue stands still until the next start", exc_info=worker.exception())
