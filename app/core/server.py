"""Everything behind the routes, built in one place and started and stopped in one order."""

import logging
from collections.abc import Sequence
from itertools import product

from app.core.autoload import Autoload
from app.core.catalog import Catalog
from app.core.job_documents import MEASURE, QUANTIZE
from app.core.jobs import Jobs
from app.core.loading import Loader
from app.core.residency import Residency
from app.metrics.serving import ServingMetrics
from app.settings import Settings
from app.store import jobs as job_rows
from app.store.database import Store
from app.store.jobs import JobState
from app.supervisor.supervisor import Supervisor, Watch

logger = logging.getLogger(__name__)


class Server:
    """The parts of one server. Nothing runs and no file is touched before `start`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = ServingMetrics(has_vllm_names=settings.metrics_compat == "vllm")
        self.store = Store(settings.data_dir)
        self.supervisor = Supervisor(
            Watch(
                step_timeout_s=settings.step_timeout_s,
                load_timeout_s=settings.load_timeout_s,
                faults=settings.faults or "",
            )
        )
        self.catalog = Catalog(settings, self.store, self.supervisor)
        self.residency = Residency(settings, self.store, self.catalog, self.metrics)
        self.autoload = Autoload(settings, self.catalog, self.residency, self.metrics)
        self.loader = Loader(settings, self.catalog, self.residency)
        self.jobs = Jobs(settings, self.store, self.supervisor, self.catalog, self.residency)
        self.is_draining = False

    async def start(self, load: Sequence[str] = ()) -> None:
        """Take the data folder, mend what a crash has left, register the embedded model, begin to load `load`.

        Raises DataDirInUse, DatabaseDamaged, SchemaTooNew, or ApiError if the embedded model is not usable.
        """
        await self.store.open()
        try:
            await self.supervisor.start()
            await self.jobs.recover()
            await self.catalog.start()
        except BaseException:
            await self.supervisor.stop()
            await self.store.close()
            raise
        self.jobs.start()
        self.residency.start()
        self.load_at_start(load)

    async def count_jobs(self) -> dict[tuple[str, str], int]:
        """How many jobs there are by kind and state, zeros included."""
        return {
            **dict.fromkeys(product((QUANTIZE, MEASURE), JobState), 0),
            **await self.store.run(job_rows.count),
        }

    def load_at_start(self, models: Sequence[str]) -> None:
        """Load what the operator named, in the background; /readyz says no until all of it is ready."""
        self.loader.start(models)

    def begin_drain(self) -> None:
        """Take no request more; those that run may end. May be called in a signal handler."""
        self.is_draining = True
        self.autoload.drain()

    async def stop(self) -> None:
        """Let requests end, put the running job back into the queue, end every child, close the store."""
        self.begin_drain()
        logger.info("stopping")
        await self.autoload.stop()
        await self.residency.stop()
        await self.loader.stop()
        await self.jobs.stop()
        await self.catalog.stop()
        await self.supervisor.stop()
        await self.store.close()
