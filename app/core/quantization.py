"""One run of one quantize job: compress in one process, verify in a fresh one."""

import asyncio
import shutil
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from app import embedded
from app.core.fit import cast_bytes
from app.core.job_documents import QUANTIZE, QuantizeSpec
from app.core.job_run import JobRun, RunTools
from app.core.publish import staging_of
from app.core.token_files import documents, encode_documents, split_windows, write_token_ids
from app.errors import DiskFull
from app.schemas.jobs import JobResultObject
from app.store.bases import BaseRow
from workers.protocol.messages import CompressResult
from workers.protocol.recipes import AutoRecipe, Calibration, CastRecipe, Recipe
from workers.protocol.specs import CompressSpec, VerifySpec

VERIFY_TOKENS: Final = 256
# Tokenizer, config, manifest.
_SMALL_FILES_BYTES: Final = 64 * 2**20
_ACTIVATION_BYTES: Final = 2**30


class QuantizeRun(JobRun):
    """One attempt at a compression. compressed: what the first process has made, from then on."""

    def __init__(self, job_id: str, spec: QuantizeSpec, base: BaseRow, tools: RunTools) -> None:
        super().__init__(job_id, QUANTIZE, base, tools)
        self.compressed: CompressResult | None = None
        self._spec = spec

    async def execute(self, text_folder: Path) -> JobResultObject:
        """Make `staging/<job>/out` and prove that it works. text_folder: with the base's tokenizer.json.

        Raises RunCancelled, JobFailed, WorkerGone, or OSError.
        """
        staging = staging_of(self._settings.data_dir, self.job_id)
        await asyncio.to_thread(_prepare, staging)
        calibration = await asyncio.to_thread(self._write_calibration, staging, text_folder / "tokenizer.json")
        self.compressed = compressed = (await self.run(self._compress_spec(staging, calibration))).compressed
        text_ids = await asyncio.to_thread(verification_ids, text_folder / "tokenizer.json")
        verified = (await self.run(self._verify_spec(staging, text_ids))).verified
        assert compressed is not None
        assert verified is not None
        return JobResultObject(
            variant=self._spec.variant,
            format=compressed.format,
            layout=compressed.layout,
            bits=compressed.bits,
            weight_bytes=compressed.weight_bytes,
            disk_bytes=compressed.disk_bytes,
            num_compressed=compressed.num_compressed,
            kept=compressed.kept,
            fallbacks=compressed.fallbacks,
            calibration_tokens=compressed.num_tokens,
            folds=compressed.folds,
            unfolded=compressed.unfolded,
            allocation=compressed.allocation,
            trials=compressed.trials,
            mean_error=compressed.mean_error,
            kl_mean=verified.kl_mean,
            kl_max=verified.kl_max,
            top1_agreement=verified.top1_agreement,
            num_tokens=verified.num_tokens,
        )

    def _write_calibration(self, staging: Path, tokenizer_file: Path) -> Calibration | None:
        """The job's text, tokenized; once per job, so that an attempt that goes on has the same tokens."""
        wanted = self._spec.calibration
        if wanted is None:
            return None
        file, heldout = staging / "calibration.safetensors", staging / "heldout.safetensors"
        recipe = self._spec.recipe
        num_heldout = recipe.num_windows if isinstance(recipe, AutoRecipe) else 0
        if not file.is_file():
            tokens = encode_documents(tokenizer_file, documents(wanted.text, wanted.path, embedded.calibration_text))
            num_tokens = min(wanted.sequence_length, self.base.info.max_model_len)
            samples, windows = split_windows(tokens, wanted.num_samples, num_heldout, num_tokens, wanted.seed)
            if windows:
                write_token_ids(heldout, windows)
            write_token_ids(file, samples)
        return Calibration(token_ids_path=str(file), heldout_ids_path=str(heldout) if num_heldout else None)

    def _compress_spec(self, staging: Path, calibration: Calibration | None) -> CompressSpec:
        return CompressSpec(
            base_path=self.base.info.path,
            output_dir=str(staging / "out"),
            base=self._spec.base,
            variant=self._spec.variant,
            method=self._spec.method,
            recipe=self._spec.recipe,
            layout=self._spec.layout,
            overrides=self._spec.overrides,
            calibration=calibration,
            quantize_head=self._spec.quantize_head,
            device=self._spec.device,
            skip=self._spec.skip,
            seed=self._spec.seed,
            activation_bytes=_activation_bytes(self._settings.job_memory_bytes),
            memory_bytes=self._settings.job_memory_bytes,
            num_threads=self._settings.num_threads,
        )

    def _verify_spec(self, staging: Path, text_ids: tuple[int, ...]) -> VerifySpec:
        return VerifySpec(
            variant_dir=str(staging / "out"),
            base_path=self.base.info.path,
            text_ids=text_ids,
            max_kl=self._spec.max_kl,
            device=self._spec.device,
            num_threads=self._settings.num_threads,
        )


def _activation_bytes(job_memory_bytes: int | None) -> int:
    """Hidden states that a job may hold in memory: a quarter of what it may take, a GiB at most."""
    return _ACTIVATION_BYTES if job_memory_bytes is None else min(_ACTIVATION_BYTES, job_memory_bytes // 4)


def verification_ids(tokenizer_file: Path) -> tuple[int, ...]:
    """Tokens of a text that no model of ours has seen, by the model's own tokenizer."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    # A token of English covers about four characters; five leave room for long words.
    text = embedded.heldout_text()[: 5 * VERIFY_TOKENS]
    return tuple(tokenizer.encode(text).ids[:VERIFY_TOKENS])


def check_disk(base: BaseRow, recipe: Recipe, data_dir: Path) -> None:
    """Raise DiskFull if a variant as large as its base would not fit: only a cast can make one larger."""
    weight_bytes = base.info.weight_bytes
    if isinstance(recipe, CastRecipe):
        weight_bytes = cast_bytes(weight_bytes, base.info.dtype, recipe.dtype)
    needed_bytes = weight_bytes + _SMALL_FILES_BYTES
    free_bytes = shutil.disk_usage(data_dir).free
    if needed_bytes > free_bytes:
        raise DiskFull(f"The job needs up to {needed_bytes:,} bytes of disk and {free_bytes:,} are free.")


def _prepare(folder: Path) -> None:
    """A staging folder without the result of an attempt that was cut off. Its finished layers stay for this one."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
