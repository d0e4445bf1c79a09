"""One measurement: a variant's perplexity on a text, and how far its next-token distributions are from its base's.

The base is read only if its numbers for this text are not on disk yet, and is gone before the variant is read.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from workers.checkpoint.load import load_model
from workers.device import device_name, resolve_device
from workers.formats.swap import kernels
from workers.measure.base_scores import base_logits
from workers.measure.intervals import BLOCK_TOKENS, mean_interval
from workers.measure.quality import window_logits
from workers.measure.reference import (
    Reference,
    cache_file,
    join,
    load_reference,
    lumped_kl,
    save_reference,
    summarize,
)
from workers.measure.windows import sliding_windows
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress, MeasureResult
from workers.protocol.specs import MeasureSpec

Report = Callable[[JobProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """A variant at T scored positions, (T,) each; the last three None without a base. agrees: same first choice."""

    nll: Tensor
    num_windows: int
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    agrees: Tensor | None = None


class Measurement:
    """The steps of one measure job; `poll` is called between windows and raises to cancel."""

    def __init__(self, spec: MeasureSpec, report: Report, poll: Callable[[], None]) -> None:
        self._spec = spec
        self._report = report
        self._poll = poll
        self._device = resolve_device(spec.device)
        self._kernel = ""
        self._token_ids: Tensor = load_file(spec.token_ids_path)["token_ids"][0].to(torch.int64)
        self._windows = list(sliding_windows(self._token_ids.shape[0], spec.window, spec.stride))

    def run(self) -> MeasureResult:
        """Raises WorkerError: invalid_request for a text of one token, nonfinite_logits, or what loading raises."""
        spec = self._spec
        if self._token_ids.shape[0] < 2:
            raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "a measurement needs a text of at least two tokens")
        settings = (spec.window, spec.stride, spec.top_k)
        file = cache_file(Path(spec.cache_dir), spec.base_fingerprint, self._token_ids, settings)
        reference, is_cached = self._reference(file)
        scores = self._score(reference)
        if not torch.isfinite(scores.nll).all():
            raise WorkerError(WorkerErrorCode.NONFINITE_LOGITS, "the variant gives NaN or infinite logits on this text")
        return self._result(scores, reference, file, is_cached)

    def _reference(self, file: Path) -> tuple[Reference | None, bool]:
        if self._spec.base_path is None:
            return None, False
        found = load_reference(file)
        if found is not None:
            return found, True
        made = join([summarize(log_probs, targets, self._spec.top_k) for log_probs, targets in self._base_log_probs()])
        save_reference(file, made)
        return made, False

    def _score(self, reference: Reference | None) -> _Scores:
        model = load_model(
            Path(self._spec.variant_dir),
            dtype=self._spec.dtype,
            device=self._device,
            on_progress=self._progress("reading variant"),
        ).model
        self._kernel = kernels(model)
        nll, forward, backward, agrees = [], [], [], []
        done = 0
        logits = window_logits(model, self._texts())
        for log_probs, targets in self._log_probs(logits, "scoring variant"):
            nll.append(-log_probs.gather(1, targets[:, None])[:, 0])
            if reference is None:
                continue
            here = slice(done, done + targets.shape[0])
            part = Reference(
                top_ids=reference.top_ids[here],
                top=reference.top[here],
                tail=reference.tail[here],
                first=reference.first[here],
                nll=reference.nll[here],
            )
            there, back = lumped_kl(part, log_probs)
            forward.append(there)
            backward.append(back)
            agrees.append(log_probs.argmax(dim=1) == part.first)
            done = here.stop
        if reference is None:
            return _Scores(nll=torch.cat(nll), num_windows=len(nll))
        return _Scores(
            nll=torch.cat(nll),
            num_windows=len(nll),
            kl=torch.cat(forward),
            reverse_kl=torch.cat(backward),
            agrees=torch.cat(agrees).to(torch.float64),
        )

    def _base_log_probs(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._spec.base_path is not None
        logits = base_logits(
            Path(self._spec.base_path),
            self._texts(),
            dtype="auto",
            device=self._device,
            on_progress=self._progress("reading base"),
        )
        return self._log_probs(logits, "scoring base")

    def _texts(self) -> list[Tensor]:
        return [self._token_ids[window.begin : window.end] for window in self._windows]

    @torch.inference_mode()
    def _log_probs(self, logits: Iterator[Tensor], phase: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Per window: natural-log probabilities (T, V) fp32 at the scored positions, and the tokens (T,) that came.

        logits: of each window, (tokens, V).
        """
        total = self._token_ids.shape[0]
        for window, predicted in zip(self._windows, logits, strict=True):
            scored = predicted[window.first - window.begin - 1 : -1].to(torch.float32)
            yield torch.log_softmax(scored, dim=-1).cpu(), self._token_ids[window.first : window.end]
            self._report(JobProgress(phase=phase, done=window.end, total=total))
            self._poll()

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self._report(JobProgress(phase=phase, done=done, total=total))
            self._poll()

        return progress

    def _result(self, scores: _Scores, reference: Reference | None, file: Path, is_cached: bool) -> MeasureResult:
        nll = float(scores.nll.to(torch.float64).mean())
        bounds = mean_interval(scores.nll)
        common = MeasureResult(
            perplexity=math.exp(nll),
            nll=nll,
            perplexity_interval=None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1])),
            num_tokens=scores.nll.shape[0],
            num_windows=scores.num_windows,
            window=self._spec.window,
            stride=self._spec.stride,
            block_tokens=BLOCK_TOKENS,
            text_sha256=hashlib.sha256(self._token_ids.to(torch.int32).numpy().tobytes()).hexdigest(),
            device=str(self._device),
            device_name=device_name(self._device),
            kernel=self._kernel,
        )
        if reference is None or scores.kl is None or scores.reverse_kl is None or scores.agrees is None:
            return common
        # A divergence is never negative; rounding of fp32 log-probabilities leaves -1e-8.
        kl, reverse = scores.kl.clamp(min=0), scores.reverse_kl.clamp(min=0)
        return msgspec.structs.replace(
            common,
            base_perplexity=math.exp(float(reference.nll.to(torch.float64).mean())),
            kl_mean=float(kl.mean()),
            kl_mean_interval=mean_interval(kl),
            kl_p99=_p99(kl),
            reverse_kl_mean=float(reverse.mean()),
            reverse_kl_p99=_p99(reverse),
            top1_agreement=float(scores.agrees.mean()),
            top1_agreement_interval=mean_interval(scores.agrees),
            top_k=reference.top.shape[1],
            is_exact=bool((reference.tail == -torch.inf).all()),
            reference_bytes=file.stat().st_size,
            reference_cached=is_cached,
        )


def measure_variant(spec: MeasureSpec, report: Report, poll: Callable[[], None]) -> MeasureResult:
    """Run the job. Raises WorkerError, or what `poll` raises."""
    return Measurement(spec, report, poll).run()


def _p99(values: Tensor) -> float:
    """The 99th percentile, by sorting: torch.quantile takes 16 million values at most."""
    ordered = values.sort().values
    return float(ordered[min(ordered.shape[0] - 1, math.ceil(0.99 * ordered.shape[0]) - 1)])
