"""From a spec to an engine around a real model: device, weights, lane, KV pool. Imports transformers."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workers.checkpoint.config import architecture, max_model_len, read_json
from workers.checkpoint.load import load_model
from workers.device import device_name, memory_free_bytes, resolve_device
from workers.engine.engine import Engine, EngineLimits
from workers.engine.lane import build_runner
from workers.faults import Faults
from workers.formats.prepacked import prepack_linears
from workers.formats.swap import kernels
from workers.protocol.messages import ModelInfo
from workers.protocol.specs import ServeSpec

logger = logging.getLogger(__name__)

# On the CPU the memory is everyone's; a larger pool holds more of old prompts, and little else.
_CPU_KV_SHARE = 0.25
_CPU_KV_LIMIT_BYTES = 4 * 2**30
# On a GPU nobody else wants it. The margin is for activations, the sampler's copies of the logits, and cuBLAS.
_CUDA_KV_SHARE = 0.9
_CUDA_MARGIN_BYTES = 2**30

_DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def open_model(
    spec: ServeSpec,
    on_bytes: Callable[[int, int], None],
    on_phase: Callable[[str], None],
    faults: Faults,
) -> tuple[Engine, ModelInfo]:
    """Load the variant and prove its lane.

    on_bytes: gets bytes done and in all while weights are read. on_phase: gets the names of later phases.
    Raises WorkerError, and whatever a broken checkpoint makes torch or transformers raise. load_s and process_bytes
    of the info are left to the caller.
    """
    device = resolve_device(spec.device)
    config = read_json(Path(spec.path) / "config.json")
    on_phase("building")
    loaded = load_model(
        Path(spec.path), dtype=spec.dtype, device=device, on_progress=on_bytes, is_unrounded=spec.is_unrounded
    )
    prepack_linears(loaded.model)
    on_phase("proving")
    num_positions = max_model_len(config)
    limits = EngineLimits(
        max_model_len=min(spec.max_model_len or num_positions, num_positions),
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        eos_token_ids=eos_token_ids(loaded.model),
        is_prefill_timed=device.type == "cpu",
    )
    choice = build_runner(
        loaded.model,
        lane=spec.lane,
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        kv_cache_bytes=default_kv_cache_bytes(device) if spec.kv_cache_bytes is None else spec.kv_cache_bytes,
        verdict_dir=spec.verdict_dir,
    )
    engine = Engine(choice.runner, limits, faults, tokenizer_path=spec.tokenizer_path)
    geometry = choice.runner.geometry
    info = ModelInfo(
        architecture=architecture(config),
        device=str(device),
        device_name=device_name(device),
        dtype=_DTYPE_NAMES[loaded.dtype],
        format=loaded.format,
        lane=choice.lane,
        lane_reason=choice.reason,
        kernel=kernels(loaded.model),
        vocab_size=choice.runner.vocab_size,
        max_model_len=engine.max_model_len,
        eos_token_ids=sorted(limits.eos_token_ids),
        num_parameters=loaded.num_parameters,
        weight_bytes=loaded.weight_bytes,
        kv_cache_bytes=choice.kv_cache_bytes,
        kv_cache_tokens=geometry.num_pages * geometry.page_size,
        process_bytes=0,
        load_s=0.0,
    )
    return engine, info


def default_kv_cache_bytes(device: torch.device) -> int:
    """Bytes for the page pool where nobody has asked for a number: a share of what is free after the weights."""
    free = memory_free_bytes(device)
    if device.type == "cuda":
        return max(0, int(free * _CUDA_KV_SHARE) - _CUDA_MARGIN_BYTES)
    return min(int(free * _CPU_KV_SHARE), _CPU_KV_LIMIT_BYTES)


def eos_token_ids(model: Any) -> frozenset[int]:
    """The tokens that end a text: of the generation config where it names any, else of the model's config."""
    for config in (getattr(model, "generation_config", None), model.config):
        ids = getattr(config, "eos_token_id", None)
        if isinstance(ids, int):
            return frozenset({ids})
        if ids:
            return frozenset(ids)
    return frozenset()
