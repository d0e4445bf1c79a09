"""Choose how a model runs: the fastest lane that is proven to give the plain model's logits."""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from workers.engine.compat import CompatRunner, Memory
from workers.engine.kv_pool import PAGE_SIZE, pages_that_fit
from workers.engine.packed import PackedRunner
from workers.engine.probe import probe, set_attention
from workers.engine.recurrent import RecurrentRunner
from workers.engine.refusal import LaneRefusedError
from workers.engine.runner import Runner
from workers.engine.verdict import Verdict, read_verdict, verdict_path, write_verdict
from workers.engine.verify import MODEL_ERRORS, Sample, prove, take_samples
from workers.protocol.errors import WorkerError, WorkerErrorCode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneChoice:
    """The runner to serve with. lane: packed, recurrent or compat; kv_cache_bytes: of the pools it has allocated."""

    runner: Runner
    lane: str
    reason: str
    kv_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """How much the caches may hold: tokens of one sequence, sequences at once, bytes in all."""

    max_model_len: int
    max_num_seqs: int
    kv_cache_bytes: int


def build_runner(
    model: PreTrainedModel,
    *,
    lane: Literal["auto", "packed", "compat"],
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_bytes: int,
    verdict_dir: str | None,
) -> LaneChoice:
    """Put `model` (in eval mode, on its device) behind the fastest lane that gives its own logits.

    lane: "packed" refuses the load where neither the packed nor the recurrent lane is proven; "compat" skips both.
    verdict_dir: where proofs are remembered, None = prove at every load.
    Raises WorkerError if no lane works or `kv_cache_bytes` do not hold a single page.
    """
    limits = CacheLimits(max_model_len=max_model_len, max_num_seqs=max_num_seqs, kv_cache_bytes=kv_cache_bytes)
    path = verdict_path(model, max_model_len, verdict_dir)
    verdict = read_verdict(path)
    if lane != "compat" and (verdict is None or verdict.refusal is None):
        original = model.config._attn_implementation
        try:
            choice, verdict = _fast_lane(model, limits, verdict)
        except LaneRefusedError as refused:
            logger.info("no fast lane for %s: %s", type(model).__name__, refused)
            set_attention(model, original)
            verdict = Verdict(refusal=str(refused))
        else:
            write_verdict(path, verdict)
            return choice
    reason = verdict.refusal if verdict and verdict.refusal else "asked for"
    if lane == "packed":
        raise WorkerError(WorkerErrorCode.UNSUPPORTED_MODEL, f"no packed lane for this model: {reason}; use lane auto")
    choice, memory = _compat_lane(model, limits, reason, verdict.memory if verdict else None)
    if lane == "auto":
        write_verdict(path, Verdict(refusal=reason, memory=memory))
    return choice


def _fast_lane(model: PreTrainedModel, limits: CacheLimits, verdict: Verdict | None) -> tuple[LaneChoice, Verdict]:
    """The packed lane, or the recurrent one where the model carries states. Raises LaneRefusedError."""
    _refuse_stretched_positions(model.config, limits.max_model_len)
    try:
        facts = probe(model, limits.max_model_len)
        windows = [shape.window for shape in facts.attention.values()]
        samples = [] if verdict else take_samples(model, windows, limits.max_model_len)
    except torch.OutOfMemoryError:
        raise
    except MODEL_ERRORS as error:
        raise LaneRefusedError(f"{type(error).__name__}: {error}") from error
    state_bytes = sum(shape.numel() * dtype.itemsize for shape, dtype in facts.states.values())
    # twice: the states before and after a step are held side by side
    num_slots = _fit(limits.max_num_seqs, limits.kv_cache_bytes // 2, 2 * state_bytes)
    pool_bytes = limits.kv_cache_bytes - 2 * state_bytes * num_slots
    shapes = list(facts.attention.values())
    num_pages = pages_that_fit(shapes, pool_bytes, limits.max_model_len, limits.max_num_seqs)
    _require_room(num_pages, limits)
    kv_cache_bytes = num_pages * PAGE_SIZE * sum(shape.bytes_per_token for shape in shapes)
    if not facts.states:
        packed = PackedRunner(model, facts, num_pages)
        prove(packed, model, samples)
        reason = "proven against the plain model"
        choice = LaneChoice(runner=packed, lane="packed", reason=reason, kv_cache_bytes=kv_cache_bytes)
        return choice, Verdict(refusal=None)
    _require_room(num_slots, limits)
    recurrent = RecurrentRunner(model, facts, num_pages, num_slots)
    supports_chunks, reason = _prove_chunks(recurrent, model, samples, verdict)
    kv_cache_bytes += num_slots * state_bytes
    choice = LaneChoice(runner=recurrent, lane="recurrent", reason=reason, kv_cache_bytes=kv_cache_bytes)
    return choice, Verdict(refusal=None, supports_chunks=supports_chunks)


def _prove_chunks(
    runner: RecurrentRunner, model: PreTrainedModel, samples: list[Sample], verdict: Verdict | None
) -> tuple[bool, str]:
    """Whether prompts may enter in parts, and a reason for the user. Raises LaneRefusedError if not even whole ones."""
    reason = "proven against the plain model"
    supports_chunks = verdict.supports_chunks if verdict else True
    if supports_chunks:
        try:
            prove(runner, model, samples)
        except LaneRefusedError as refused:
            logger.info("prompts must enter whole: %s", refused)
            supports_chunks = False
    if not supports_chunks:
        runner.geometry = replace(runner.geometry, supports_chunks=False)
        prove(runner, model, samples)
        reason += "; prompts enter whole"
    return supports_chunks, reason


def _compat_lane(
    model: PreTrainedModel, limits: CacheLimits, reason: str, known_memory: str | None
) -> tuple[LaneChoice, str]:
    """The compat lane with the first way to remember that is proven. Raises WorkerError if there is none."""
    text_config = model.config.get_text_config()
    # an upper bound (no grouped heads, no windows), because such a model's cache has no known shape
    bytes_per_token = 2 * text_config.num_hidden_layers * text_config.hidden_size * model.dtype.itemsize
    useful = limits.max_num_seqs * -(-limits.max_model_len // PAGE_SIZE)
    num_pages = _fit(useful, limits.kv_cache_bytes, bytes_per_token * PAGE_SIZE)
    _require_room(num_pages, limits)
    samples = [] if known_memory else take_samples(model, [], limits.max_model_len)
    refusals = []
    for memory in [Memory(known_memory)] if known_memory else Memory:
        try:
            runner = CompatRunner(model, num_pages=num_pages, memory=memory)
            prove(runner, model, samples)
        except (LaneRefusedError, *MODEL_ERRORS) as refused:
            refusals.append(f"memory {memory.value}: {refused}")
        else:
            return LaneChoice(runner=runner, lane="compat", reason=reason, kv_cache_bytes=0), memory.value
    raise WorkerError(
        WorkerErrorCode.UNSUPPORTED_MODEL, f"{type(model).__name__} runs in no lane: {reason}; {'; '.join(refusals)}"
    )


def _refuse_stretched_positions(config: PreTrainedConfig, max_model_len: int) -> None:
    """Raise LaneRefusedError if a long sequence would change the positions of its neighbours in a batch.

    Two kinds of rotary embedding choose their frequencies anew for each forward, by the furthest position in it.
    """
    text_config = config.get_text_config()
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in [parameters, *nested]:
        kind = rope.get("rope_type", "default")
        if kind not in ("dynamic", "longrope"):
            continue
        limit = rope.get("original_max_position_embeddings") or text_config.max_position_embeddings
        if max_model_len > limit:
            raise LaneRefusedError(
                f"{kind} rotary positions change for a whole batch once one sequence passes {limit} tokens; "
                f"load with max_model_len of at most {limit} for the packed lane"
            )


def _fit(useful: int, budget_bytes: int, bytes_each: int) -> int:
    """How many of `bytes_each` the budget holds, at most `useful`."""
    return useful if bytes_each == 0 else min(useful, budget_bytes // bytes_each)


def _require_room(count: int, limits: CacheLimits) -> None:
    if count < 1:
        raise WorkerError(
            WorkerErrorCode.INSUFFICIENT_MEMORY,
            f"{limits.kv_cache_bytes} bytes of cache do not hold one sequence; allow more, or a smaller model",
        )
