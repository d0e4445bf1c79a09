"""The proof that a staged variant works, in a fresh process, before anybody can see it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoint import config as configs
from workers.checkpoint.load import LoadedModel, load_model
from workers.checkpoint.manifest import verify_files
from workers.device import resolve_device
from workers.measure.base_scores import base_logits
from workers.measure.quality import greedy_tokens, kl_divergence, log_probs, top1_agreement, window_logits
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.messages import JobProgress, VerifyResult
from workers.protocol.specs import VerifySpec

_PROMPT_TOKENS = 32


def verify_variant(spec: VerifySpec, report: Callable[[JobProgress], None], poll: Callable[[], None]) -> VerifyResult:
    """Check hashes, load, generate and compare with the base. The two models are never in memory together.

    Raises WorkerError: variant_corrupt for wrong files, verification_failed for a variant that loads and is not good
    enough, invalid_request without text, or what `poll` raises.
    """
    if not spec.text_ids:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, "verification needs at least one token of text")
    folder, device = Path(spec.variant_dir), resolve_device(spec.device)

    def tell(phase: str) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            report(JobProgress(phase=phase, done=done, total=total))
            poll()

        return progress

    verify_files(folder, tell("hashing"))
    max_model_len = configs.max_model_len(configs.read_json(folder / "config.json"))
    windows = torch.split(torch.tensor(spec.text_ids, dtype=torch.int64), max_model_len)
    logits = base_logits(Path(spec.base_path), windows, dtype="auto", device=device, on_progress=tell("reading base"))
    base = log_probs(logits)
    loaded = load_model(folder, dtype="auto", device=device, on_progress=tell("reading variant"))
    _check_generation(loaded, spec, max_model_len)
    variant = log_probs(window_logits(loaded.model, windows))
    return _compare(base, variant, spec.max_kl)


def _check_generation(loaded: LoadedModel, spec: VerifySpec, max_model_len: int) -> None:
    num_prompt_tokens = max(1, min(_PROMPT_TOKENS, max_model_len - spec.num_tokens))
    if greedy_tokens(loaded.model, spec.text_ids[:num_prompt_tokens], spec.num_tokens) is None:
        raise WorkerError(
            WorkerErrorCode.VERIFICATION_FAILED, "the variant gives NaN or infinite logits; keep the base"
        )


def _compare(base: Tensor, variant: Tensor, max_kl: float) -> VerifyResult:
    kl = kl_divergence(base, variant)
    mean = float(kl.mean())
    # Written so that NaN fails too.
    if not mean <= max_kl:
        raise WorkerError(
            WorkerErrorCode.VERIFICATION_FAILED,
            f"the variant is {mean:.4f} nats per token away from its base, allowed are {max_kl}; use more bits or skip "
            "modules",
        )
    return VerifyResult(
        kl_mean=mean,
        kl_max=float(kl.max()),
        top1_agreement=top1_agreement(base, variant),
        num_tokens=kl.shape[0],
    )
