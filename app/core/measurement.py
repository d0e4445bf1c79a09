"""POST /v1/measure: what a request means here, and one run of one measure job.

The queue runs one job at a time, so a measurement has the device to itself but for requests to loaded variants; these
go on, and the report names who was busy.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Final, cast

import msgspec

from app import embedded
from app.core import fit
from app.core.catalog import Catalog
from app.core.compress_request import text_path
from app.core.energy import DeviceMeter
from app.core.entries import Entry
from app.core.environment import environment_of
from app.core.job_documents import MEASURE, MeasureJob, Workload
from app.core.job_run import JobRun, RunTools
from app.core.neighbours import together
from app.core.publish import staging_of
from app.core.serving import quarantined
from app.core.timed_worker import TimedWorker
from app.core.token_files import MIN_TOKENS, documents, encode_documents, write_token_ids
from app.core.variants import VariantState
from app.errors import InvalidRequest
from app.schemas.jobs import MeasureBody
from app.schemas.reports import Environment, MeasurementObject, SpeedReport
from app.settings import Settings
from app.store.bases import BaseRow
from workers.protocol.messages import MeasureResult, ProbeResult
from workers.protocol.specs import DtypeName, MeasureSpec, ProbeSpec

_WINDOW: Final = 512
_DEFAULT_TEXT: Final = "default"
_STREAMS: Final = (1, 4, 16)
_CUDA_STREAMS: Final = (*_STREAMS, 64)
_PROMPT_TOKENS: Final = 128
_NEW_TOKENS: Final = 64


class MeasureRun(JobRun):
    """One attempt at a measurement."""

    def __init__(self, job_id: str, spec: MeasureJob, entry: Entry, base: BaseRow, tools: RunTools) -> None:
        super().__init__(job_id, MEASURE, base, tools)
        self._spec = spec
        self._entry = entry
        self._tools = tools
        self._timing: asyncio.Task[SpeedReport] | None = None

    async def execute(self) -> MeasurementObject:
        """Raises RunCancelled, JobFailed, WorkerGone, DoesNotFit, InvalidRequest for a text too short, or OSError."""
        staging = staging_of(self._settings.data_dir, self.job_id)
        tokens = await asyncio.to_thread(self._write_text, staging)
        quality = await self._quality(staging) if self._spec.quality else None
        if self._spec.speed is None:
            assert quality is not None, "the request asked for one of the two"
            return MeasurementObject(environment=await self._environment(quality, None), quality=quality)
        # who reads memory now makes it look slower, and x_of_floor better
        company = self._tools.neighbours.begin("")
        probe = (await self.run(ProbeSpec(device=self._spec.device, num_threads=self._settings.num_threads))).probed
        assert probe is not None
        busy = company.found()
        meter = await asyncio.to_thread(DeviceMeter, probe.uuid)
        # as it was before: the measurement itself makes a load
        environment = await self._environment(probe, meter.driver())
        speed = await self._speed(self._spec.speed, tokens, probe, meter)
        speed = msgspec.structs.replace(speed, neighbours=together(busy, speed.neighbours))
        return MeasurementObject(environment=environment, quality=quality, speed=speed)

    async def cancel(self) -> None:
        """Stop as soon as possible."""
        await super().cancel()
        if self._timing is not None:
            self._timing.cancel()

    async def _quality(self, staging: Path) -> MeasureResult:
        measured = (await self.run(self._measure_spec(staging))).measured
        assert measured is not None
        return measured

    async def _speed(
        self, workload: Workload, tokens: list[int], probe: ProbeResult, meter: DeviceMeter
    ) -> SpeedReport:
        """In a task of its own, so that a cancelled job need not wait for a step of a large model."""
        self._check()
        timed = TimedWorker(
            job_id=self.job_id, entry=self._entry, base=self.base, device=probe.device, tools=self._tools
        )
        self._timing = asyncio.get_running_loop().create_task(timed.time(workload, tokens, probe, meter))
        await asyncio.wait({self._timing})
        self._check()
        return self._timing.result()

    async def _environment(self, found: MeasureResult | ProbeResult, driver: str | None) -> Environment:
        return await asyncio.to_thread(environment_of, found, self._settings.num_threads, driver)

    def _write_text(self, staging: Path) -> list[int]:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        texts = documents(self._spec.text, self._spec.path, embedded.heldout_text)
        tokens = encode_documents(self._entry.text_folder / "tokenizer.json", texts)[: self._spec.max_tokens]
        fewest = MIN_TOKENS if self._spec.speed is None else max(MIN_TOKENS, self._spec.speed.prompt_tokens)
        if len(tokens) < fewest:
            raise InvalidRequest(f"The text has {len(tokens)} tokens, {fewest} are the least.", param="text")
        write_token_ids(staging / "text.safetensors", [tokens])
        return tokens

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
    if not body.quality and not body.speed:
        raise InvalidRequest("Ask for 'quality', for 'speed', or for both.", param="speed")
    longest = entry.base.info.max_model_len
    window = body.window if body.window is not None else min(_WINDOW, longest)
    if window > longest:
        raise InvalidRequest(f"'{entry.row.id}' reads {longest} tokens at most.", param="window")
    stride = body.stride if body.stride is not None else max(1, window // 2)
    if stride > window:
        raise InvalidRequest(f"A stride of {stride} would skip tokens; a window has {window}.", param="stride")
    device = body.device or settings.device
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
        quality=body.quality,
        speed=resolve_workload(body, longest, device, settings.max_num_seqs) if body.speed else None,
        device=device,
    )


def measure_of(variant_id: str, catalog: Catalog, settings: Settings) -> MeasureJob | None:
    """The measurement that follows the making of a variant; None if the settings want none."""
    wanted = settings.auto_measure
    if wanted == "off":
        return None
    body = MeasureBody(model=variant_id, quality=wanted in ("quality", "all"), speed=wanted in ("speed", "all"))
    return resolve_measure(body, catalog, settings)


def resolve_workload(body: MeasureBody, longest: int, device: str, max_num_seqs: int) -> Workload:
    """What to time. longest: tokens of the model's context. Raises InvalidRequest for what does not fit."""
    default = _CUDA_STREAMS if fit.is_cuda(device) else _STREAMS
    streams = [one for one in default if one <= max_num_seqs] if body.streams is None else body.streams
    if max(streams) > max_num_seqs:
        raise InvalidRequest(
            f"{max(streams)} streams would wait for each other: SLIMSERVE_MAX_NUM_SEQS is {max_num_seqs}.",
            param="streams",
        )
    prompt_tokens = body.prompt_tokens if body.prompt_tokens is not None else min(_PROMPT_TOKENS, longest // 2)
    room = max(2, longest - prompt_tokens)
    new_tokens = body.new_tokens if body.new_tokens is not None else min(_NEW_TOKENS, room)
    if prompt_tokens + new_tokens > longest:
        raise InvalidRequest(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones do not fit into the context of {longest}.",
            param="prompt_tokens",
        )
    return Workload(streams=tuple(sorted(set(streams))), prompt_tokens=prompt_tokens, new_tokens=new_tokens)
