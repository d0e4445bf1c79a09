"""Which worker a measurement of speed times, and the report of it.

A variant that is loaded is timed on the very worker that serves it. Another is started for the time being, as a load
starts it: the same process, the same engine, the same options, and room made for it in the same way.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import msgspec

from app.core.energy import DeviceMeter
from app.core.entries import Entry
from app.core.job_documents import LOADING, Workload
from app.core.job_run import RunTools
from app.core.load_request import LoadRequest
from app.core.speed import SpeedTest
from app.schemas.reports import SpeedReport
from app.store.bases import BaseRow
from app.supervisor.job import JobFailed
from app.supervisor.worker import LoadFailed, Worker
from workers.protocol.messages import JobProgress, ProbeResult
from workers.protocol.specs import DtypeName, ServeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedWorker:
    """What to time. device: as the probe names it. job_id: names the requests and a worker of the measurement's own."""

    job_id: str
    entry: Entry
    base: BaseRow
    device: str
    tools: RunTools

    async def time(
        self, workload: Workload, tokens: Sequence[int], probe: ProbeResult, meter: DeviceMeter
    ) -> SpeedReport:
        """Every level of the workload. tokens: of a text, for the prompts.

        Raises JobFailed, WorkerGone, DoesNotFit, or OSError.
        """
        async with self._worker() as worker:
            company = self.tools.neighbours.begin(worker.variant_id)
            test = SpeedTest(self.job_id, worker, workload, company, meter)
            levels = await test.run(tokens, self.tools.on_progress)
            info, stats = worker.info, worker.stats
            floor_ms = 1000 * info.weight_bytes / probe.read_bytes_per_s
            one = next((level.tpot_ms.p50 for level in levels if level.streams == 1), None)
            return SpeedReport(
                prompt_tokens=workload.prompt_tokens,
                new_tokens=workload.new_tokens,
                levels=levels,
                load_s=info.load_s,
                weight_bytes=info.weight_bytes,
                kv_cache_bytes=info.kv_cache_bytes,
                process_bytes=stats.process_bytes,
                peak_bytes=stats.peak_bytes,
                device_bytes=meter.process_bytes(worker.pid),
                bytes_on_disk=bytes_on_disk(self.entry, self.base),
                bits_per_weight=8 * info.weight_bytes / self.base.info.num_parameters,
                read_bytes_per_s=probe.read_bytes_per_s,
                floor_ms=floor_ms,
                x_of_floor=None if one is None else one / floor_ms,
                dtype=info.dtype,
                lane=info.lane,
                kernel=info.kernel,
                was_serving=worker is self.entry.life.worker,
                neighbours=company.found(),
            )

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[Worker]:
        life = self.entry.life
        if life.is_serving and life.info is not None and life.info.device == self.device:
            # as a request would, so that it is neither evicted nor idle
            with life.in_use():
                yield life.require_ready()
            return
        request = LoadRequest(model=self.entry.row.id, device=self.device)
        async with self.tools.residency.guest(self._name, self.entry, request) as guest:
            self.tools.on_progress(JobProgress(phase=LOADING, done=0, total=1))
            worker = guest.worker = await self.tools.supervisor.start_worker(self._spec(request))
            try:
                await worker.wait_ready()
                yield worker
            except LoadFailed as failed:
                raise JobFailed(failed.code, failed.message) from failed
            finally:
                await worker.kill()

    @property
    def _name(self) -> str:
        return f"{self.entry.row.id} for job {self.job_id}"

    def _spec(self, request: LoadRequest) -> ServeSpec:
        row = self.entry.row
        dtype = cast(DtypeName, row.method) if self.entry.is_cast else "auto"
        spec = self.entry.serve_spec(request, dtype, self.tools.settings)
        return msgspec.structs.replace(spec, variant=self._name)


def bytes_on_disk(entry: Entry, base: BaseRow) -> int:
    """The variant's files; of a cast, which has none, those of its base."""
    return base.bytes_on_disk if entry.is_cast else entry.row.disk_bytes
