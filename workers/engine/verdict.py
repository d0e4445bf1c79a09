"""Verdicts of lane proofs on disk, so that the same model on the same stack is proven once."""

import hashlib
import json
import os
from pathlib import Path

import msgspec
import torch
import transformers
from transformers import PreTrainedModel

# Raised whenever the lanes or the proof change, so that older verdicts no longer count.
PROOF_VERSION = 1


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a proof found. refusal: why the fast lanes were refused, None if one was taken.

    supports_chunks: prompts may enter in parts. memory: the way in which the compat lane remembers.
    """

    refusal: str | None
    supports_chunks: bool = True
    memory: str | None = None


def verdict_path(model: PreTrainedModel, max_model_len: int, verdict_dir: str | None) -> Path | None:
    """Where the verdict on this model belongs; None if verdicts are not kept.

    The name is a hash over all that the proof's outcome depends on: config, format (the kinds of modules that the
    model is made of), dtype, device, context length and versions.
    """
    if verdict_dir is None:
        return None
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    device = model.device
    facts = {
        "config": config,
        "modules": sorted({type(module).__name__ for module in model.modules()}),
        "dtype": str(model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "max_model_len": max_model_len,
        "versions": [PROOF_VERSION, torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return Path(verdict_dir) / f"{digest}.json"


def read_verdict(path: Path | None) -> Verdict | None:
    """The stored verdict, or None where there is none that can be read."""
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError):
        return None


def write_verdict(path: Path | None, verdict: Verdict) -> None:
    """Store it in one rename. Two workers may prove the same model at once; the last one wins with the same words."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(msgspec.json.encode(verdict))
    temporary.replace(path)
