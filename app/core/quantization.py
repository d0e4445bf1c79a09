"""One run of one quantize job: compress in one process, verify in a fresh one."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from app import embedded
from app.core.catalog import Catalog
from app.core.job_documents import QuantizeSpec
from app.core.names import check_part
from app.core.publish import staging_of
from app.core.variants import CAST_METHODS
from app.errors import DiskFull, InvalidRequest, NotFound
from app.schemas.jobs import JobResultObject, QuantizeBody
from app.settings import Settings
from app.store.bases import BaseRow
from app.supervisor.job import JobProcess
from app.supervisor.supervisor import Supervisor
from workers.protocol.messages import JobDone, JobProgress
from workers.protocol.specs import CompressSpec, JobSpec, VerifySpec

# Nats per token, far above the 0.001 that int8 costs and far below what a broken file costs.
MAX_KL: Final = 0.1
VERIFY_TOKENS: Final = 256
# Tokenizer, config, manifest.
_SMALL_FILES_BYTES: Final = 64 * 2**20


class RunCancelled(Exception):
    """The run was told to stop: by its client, or because the server stops."""


class QuantizeRun:
    """The processes of one attempt. `cancel` ends it at any moment; what it wrote is the caller's to remove."""

    def __init__(
        self,
        job_id: str,
        spec: QuantizeSpec,
        base: BaseRow,
        settings: Settings,
        supervisor: Supervisor,
        on_progress: Callable[[JobProgress], None],
    ) -> None:
        self.job_id = job_id
        self.ended = asyncio.Event()
        self._spec = spec
        self._base = base
        self._settings = settings
        self._supervisor = supervisor
        self._on_progress = on_progress
        self._process: JobProcess | None = None
        self._is_cancelled = False

    async def execute(self, text_folder: Path) -> JobResultObject:
        """Make `staging/<job>/out` and prove that it works. text_folder: with the base's tokenizer.json.

        Raises RunCancelled, JobFailed, WorkerGone, or OSError.
        """
        staging = staging_of(self._settings.data_dir, self.job_id)
        await asyncio.to_thread(_make_empty, staging)
        compressed = (await self._run(self._compress_spec(staging))).compressed
        text_ids = await asyncio.to_thread(verification_ids, text_folder / "tokenizer.json")
        verified = (await self._run(self._verify_spec(staging, text_ids))).verified
        assert compressed is not None
        assert verified is not None
        return JobResultObject(
            variant=self._spec.variant,
            format=compressed.format,
            bits=compressed.bits,
            weight_bytes=compressed.weight_bytes,
            disk_bytes=compressed.disk_bytes,
            num_compressed=compressed.num_compressed,
            kept=compressed.kept,
            mean_error=compressed.mean_error,
            kl_mean=verified.kl_mean,
            kl_max=verified.kl_max,
            top1_agreement=verified.top1_agreement,
            num_tokens=verified.num_tokens,
        )

    async def cancel(self) -> None:
        """Stop as soon as possible: at the job's next unit, or after five seconds by force."""
        self._is_cancelled = True
        if self._process is not None:
            await self._process.cancel()

    async def _run(self, spec: JobSpec) -> JobDone:
        self._check()
        self._process = await self._supervisor.start_job(f"job {self.job_id}", spec, self._on_progress)
        if self._is_cancelled:
            await self._process.cancel()
        try:
            return await self._process.result()
        finally:
            # Whatever a cancelled process still said, a cancelled run has no result.
            self._check()

    def _check(self) -> None:
        if self._is_cancelled:
            raise RunCancelled

    def _compress_spec(self, staging: Path) -> CompressSpec:
        return CompressSpec(
            base_path=self._base.info.path,
            output_dir=str(staging / "out"),
            base=self._spec.base,
            variant=self._spec.variant,
            method=self._spec.method,
            device=self._spec.device,
            skip=self._spec.skip,
            seed=self._spec.seed,
            num_threads=self._settings.num_threads,
        )

    def _verify_spec(self, staging: Path, text_ids: tuple[int, ...]) -> VerifySpec:
        return VerifySpec(
            variant_dir=str(staging / "out"),
            base_path=self._base.info.path,
            text_ids=text_ids,
            max_kl=MAX_KL,
            device=self._spec.device,
            num_threads=self._settings.num_threads,
        )


def verification_ids(tokenizer_file: Path) -> tuple[int, ...]:
    """Tokens of a text that no model of ours has seen, by the model's own tokenizer."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    # A token of English covers about four characters; five leave room for long words.
    text = embedded.heldout_text()[: 5 * VERIFY_TOKENS]
    return tuple(tokenizer.encode(text).ids[:VERIFY_TOKENS])


def check_disk(base: BaseRow, data_dir: Path) -> None:
    """Raise DiskFull if a variant as large as its base would not fit: no method makes one larger."""
    needed_bytes = base.info.weight_bytes + _SMALL_FILES_BYTES
    free_bytes = shutil.disk_usage(data_dir).free
    if needed_bytes > free_bytes:
        raise DiskFull(f"The job needs up to {needed_bytes:,} bytes of disk and {free_bytes:,} are free.")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def resolve_spec(body: QuantizeBody, catalog: Catalog, settings: Settings) -> QuantizeSpec:
    """What a request means here. Raises NotFound for an unknown base, InvalidRequest for one that is compressed."""
    entry = catalog.find(body.model)
    if entry is not None and not entry.is_cast:
        raise InvalidRequest(f"'{body.model}' is a variant; name its base, '{entry.row.base}'.", param="model")
    base = catalog.bases.get(entry.row.base if entry is not None else body.model.removesuffix("/auto"))
    if base is None:
        raise NotFound(
            f"No base '{body.model[:160]}'; POST /v1/load registers one, GET /v1/bases lists all of them.",
            code="base_not_found",
            param="model",
        )
    if base.info.quantization is not None:
        raise InvalidRequest(
            f"Base '{base.name}' is stored as {base.info.quantization} already; name one that is not compressed.",
            param="model",
        )
    name = check_part(body.name or body.method, "name")
    if name in (*CAST_METHODS, "auto"):
        raise InvalidRequest(f"'{name}' is the name of a dtype; give another.", param="name")
    return QuantizeSpec(
        base=base.name,
        variant=f"{base.name}/{name}",
        method=body.method,
        skip=tuple(body.skip or ()),
        device=body.device or settings.device,
        seed=body.seed,
        force=body.force,
    )
