"""POST /v1/measure: what a request means here, and one run of one measure job."""

import asyncio
import shutil
from pathlib import Path
from typing import Final, cast

from app import embedded
from app.core.catalog import Catalog
from app.core.compress_request import text_path
from app.core.entries import Entry
from app.core.job_documents import MEASURE, MeasureJob
from app.core.job_run import JobRun, RunTools
from app.core.publish import staging_of
from app.core.serving import quarantined
from app.core.token_files import MIN_TOKENS, documents, encode_documents, write_token_ids
from app.core.variants import VariantState
from app.errors import InvalidRequest
from app.schemas.jobs import MeasureBody
from app.settings import Settings
from app.store.bases import BaseRow
from workers.protocol.messages import MeasureResult
from workers.protocol.specs import DtypeName, MeasureSpec

_WINDOW: Final = 512
_DEFAULT_TEXT: Final = "default"


class MeasureRun(JobRun):
    """One attempt at a measurement."""

    def __init__(self, job_id: str, spec: MeasureJob, entry: Entry, base: BaseRow, tools: RunTools) -> None:
        super().__init__(job_id, MEASURE, base, tools)
        self._spec = spec
        self._entry = entry

    async def execute(self) -> MeasureResult:
        """Raises RunCancelled, JobFailed, WorkerGone, InvalidRequest for a text too short, or OSError."""
        staging = staging_of(self._settings.data_dir, self.job_id)
        await asyncio.to_thread(self._write_text, staging)
        measured = (await self.run(self._measure_spec(staging))).measured
        assert measured is not None
        return measured

    def _write_text(self, staging: Path) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        texts = documents(self._spec.text, self._spec.path, embedded.heldout_text)
        tokens = encode_documents(self._entry.text_folder / "tokenizer.json", texts)[: self._spec.max_tokens]
        if len(tokens) < MIN_TOKENS:
            raise InvalidRequest(f"The text has {len(tokens)} tokens, {MIN_TOKENS} are the least.", param="text")
        write_token_ids(staging / "text.safetensors", [tokens])

    def _measure_spec(self, staging: Path) -> MeasureSpec:
        spec, entry, base = self._spec, self._entry, self.base
        return MeasureSpec(
            variant_dir=str(entry.folder),
            dtype=cast(DtypeName, entry.row.method) if entry.is_cast else "auto",
            token_ids_path=str(staging / "text.safetensors"),
            window=spec.window,
            stride=spec.stride,
            base_path=base.info.path if spec.kl else None,
            base_fingerprint=base.info.fingerprint,
            cache_dir=str(self._settings.data_dir / "references"),
            top_k=spec.top_k,
            device=spec.device,
            num_threads=self._settings.num_threads,
        )


def resolve_measure(body: MeasureBody, catalog: Catalog, settings: Settings) -> MeasureJob:
    """The job to queue. Raises ModelNotFound, InvalidRequest, Forbidden, Conflict for a quarantined variant."""
    entry = catalog.entry(body.model)
    if entry.base is None:
        raise InvalidRequest(f"'{body.model}' is a stand-in and predicts nothing.", param="model")
    if entry.life.state is VariantState.QUARANTINED:
        raise quarantined(entry.row.id, entry.life.reason)
    if body.text is not None and body.path is not None:
        raise InvalidRequest("Give a text or the path of one, not both.", param="path")
    longest = entry.base.info.max_model_len
    window = body.window if body.window is not None else min(_WINDOW, longest)
    if window > longest:
        raise InvalidRequest(f"'{entry.row.id}' reads {longest} tokens at most.", param="window")
    stride = body.stride if body.stride is not None else max(1, window // 2)
    if stride > window:
        raise InvalidRequest(f"A stride of {stride} would skip tokens; a window has {window}.", param="stride")
    return MeasureJob(
        base=entry.row.base,
        variant=entry.row.id,
        method=entry.row.method,
        text=None if body.text == _DEFAULT_TEXT else body.text,
        path=text_path(body.path, "path", catalog),
        window=window,
        stride=stride,
        max_tokens=body.max_tokens,
        kl=body.kl,
        top_k=body.top_k,
        device=body.device or settings.device,
    )
