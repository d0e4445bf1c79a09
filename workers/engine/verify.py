"""The proof of a lane: short random prompts through a runner and through the plain model must give the same logits.

A lane is taken because it was seen to work on this model, device and dtype, never because of a name on a list.
"""

import inspect
import math
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.engine.refusal import LaneRefusedError
from workers.engine.runner import CacheGeometry, Runner
from workers.engine.sequence import Row, Sequence
from workers.formats.swap import product_dtype
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.specs import SamplingParams

# Ragged: shorter than a page, more than one page, more than two and an odd rest. Longer where a small window asks.
PROMPT_LENGTHS = (5, 21, 38)
NUM_DECODE_STEPS = 3
CHUNK_TOKENS = 11
MAX_PROMPT_TOKENS = 96

# What modelling code raises when it meets inputs or a cache that it was not written for.
MODEL_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Sample:
    """One random sequence and the plain model's logits for it. logits: (len(token_ids), vocab_size), fp32."""

    token_ids: list[int]
    num_prompt_tokens: int
    logits: Tensor


@torch.inference_mode()
def take_samples(model: PreTrainedModel, windows: Many[int | None], max_model_len: int) -> list[Sample]:
    """Run the plain model, without a cache, over seeded random sequences.

    windows: attention windows of the model; those short enough are exceeded by the longest sequence.
    Raises WorkerError if the plain model itself overflows, as bf16 models do in fp16.
    """
    lengths = list(PROMPT_LENGTHS)
    lengths[-1] = max([lengths[-1], *(window + 6 for window in windows if window and window + 6 <= MAX_PROMPT_TOKENS)])
    generator = torch.Generator().manual_seed(0)
    vocab_size = int(model.config.get_text_config().vocab_size)
    without_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    samples = []
    for length in lengths:
        num_prompt_tokens = max(1, min(length, max_model_len - NUM_DECODE_STEPS))
        size = (1, min(num_prompt_tokens + NUM_DECODE_STEPS, max_model_len))
        token_ids = torch.randint(0, vocab_size, size, generator=generator)
        logits = model(token_ids.to(model.device), **without_cache).logits[0].float()
        if not bool(logits.isfinite().all()):
            dtype = str(model.dtype).removeprefix("torch.")
            raise WorkerError(
                WorkerErrorCode.UNSUPPORTED_MODEL, f"the model's logits are not finite in {dtype}; load another dtype"
            )
        samples.append(Sample(token_ids[0].tolist(), num_prompt_tokens, logits))
    return samples


def prove(runner: Runner, model: PreTrainedModel, samples: Many[Sample]) -> None:
    """Run the samples through `runner`: all together, in chunks where it supports them, then token by token.

    Raises LaneRefusedError if a logit is off or the model raises.
    """
    try:
        deviations = _deviations(runner, samples)
    except torch.OutOfMemoryError:
        raise
    except MODEL_ERRORS as error:
        raise LaneRefusedError(f"{type(error).__name__}: {error}") from error
    limit = allowed_deviation(model)
    tolerated = 0.2 if _may_flip(model) else 0.0
    for phase, values in deviations.items():
        off = [value for value in values if not value <= limit]
        if len(off) > tolerated * len(values):
            raise LaneRefusedError(
                f"logits differ by {max(off):.2g} of their spread in {phase}, {limit:.2g} is allowed"
            )


def allowed_deviation(model: PreTrainedModel) -> float:
    """Largest root mean square difference between two correct computations, as a share of the logits' spread.

    Both round every sum into the residual stream to a relative u = eps / 2. Two sums per layer, each an independent
    error, and about as much again from the rounded inputs of each block, give 2 * u * sqrt(2 * num_layers); times 4 for
    the tail of the distribution. In fp32 the sums themselves dominate (thousands of terms in another order), and
    1e-3 is still far below the effect of one key too many or one position off.
    """
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    # compressed linears may round to a shorter dtype than the activations'
    unit = float(torch.finfo(product_dtype(model, model.dtype)).eps) / 2
    return max(1e-3, min(0.25, 4 * 2 * unit * math.sqrt(2 * num_layers)))


def _may_flip(model: PreTrainedModel) -> bool:
    """True where rounding can send a token to another expert, which is no error and changes its logits a lot."""
    is_routed = any("expert" in name for name, _ in model.named_modules())
    return is_routed and product_dtype(model, model.dtype) is not torch.float32


@torch.inference_mode()
def _deviations(runner: Runner, samples: Many[Sample]) -> dict[str, list[float]]:
    """Phase -> deviation at each position that ran in it."""
    result: dict[str, list[float]] = {"prefill": [], "decode": []}
    for wave in _waves(runner.geometry, samples):
        for phase, values in _deviations_of_wave(runner, wave).items():
            result[phase] += values
    return result


def _waves(geometry: CacheGeometry, samples: Many[Sample]) -> list[list[Sample]]:
    """All samples at once, or fewer where the pools hold fewer."""
    waves: list[list[Sample]] = []
    num_free_pages = 0
    for sample in samples:
        num_pages = -(-len(sample.token_ids) // geometry.page_size)
        is_full = bool(waves) and bool(geometry.num_slots) and len(waves[-1]) >= geometry.num_slots
        if num_pages > num_free_pages or is_full:
            waves.append([])
            num_free_pages = geometry.num_pages
        waves[-1].append(sample)
        num_free_pages -= num_pages
    return waves


def _deviations_of_wave(runner: Runner, samples: Many[Sample]) -> dict[str, list[float]]:
    """The same, for samples that fit side by side."""
    geometry = runner.geometry
    result: dict[str, list[float]] = {"prefill": [], "decode": []}
    sequences = _place(geometry, samples)
    try:
        while any(s.num_computed_tokens < len(s.prompt_ids) for s in sequences):
            rows, behind = [], []
            for sequence, sample in zip(sequences, samples, strict=True):
                start = sequence.num_computed_tokens
                missing = sample.num_prompt_tokens - start
                if missing > 0:
                    size = min(missing, CHUNK_TOKENS) if geometry.supports_chunks else missing
                    rows.append(Row(sequence=sequence, num_tokens=size, wants_all_logits=True))
                elif start < len(sequence.prompt_ids):
                    rows.append(Row(sequence=sequence, num_tokens=1))
                else:
                    continue
                behind.append((sample, "prefill" if missing > 0 else "decode"))
            for row, logits, (sample, phase) in zip(rows, runner.forward(rows), behind, strict=True):
                result[phase] += _deviation(logits.float(), sample.logits[row.start : row.end]).tolist()
            for row in rows:
                row.sequence.num_computed_tokens += row.num_tokens
    finally:
        for sequence in sequences:
            runner.release(sequence)
    return result


def _deviation(logits: Tensor, expected: Tensor) -> Tensor:
    """(K, vocab_size) twice -> (K,); infinity where `logits` are not finite."""
    spread = expected.std(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    deviation = (logits - expected).square().mean(dim=-1).sqrt() / spread
    return deviation.nan_to_num(nan=float("inf"))


def _place(geometry: CacheGeometry, samples: Many[Sample]) -> list[Sequence]:
    """Sequences with pages and slots of their own; pages of odd ones are in descending order, so never a run."""
    free = list(range(geometry.num_pages))
    sequences = []
    for number, sample in enumerate(samples):
        num_pages = -(-len(sample.token_ids) // geometry.page_size)
        if num_pages > len(free):
            raise LaneRefusedError(f"{geometry.num_pages} pages do not hold a prompt of {len(sample.token_ids)} tokens")
        pages, free = free[:num_pages], free[num_pages:]
        sequences.append(
            Sequence(
                request_id=f"proof-{number}",
                prompt_ids=sample.token_ids,
                params=SamplingParams(max_tokens=1),
                block_table=pages[::-1] if number % 2 else pages,
                slot=number if geometry.num_slots else None,
            )
        )
    return sequences
