"""A compression on a machine smaller than the model: the job may allocate a quarter of the weights' bytes, or less.

Writes a random checkpoint of a real shape to a temporary folder, starts a server whose jobs are limited by
SLIMSERVE_JOB_MEMORY_BYTES, registers the model without loading it, and follows one job to its end. The limit is the
kernel's (RLIMIT_DATA), so a job that wanted more would fail.

    python -m benchmarks.larger_than_memory [--method gptq-int4-g128] [--layers 110] [--limit-mib 704] [--output FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from app import embedded
from benchmarks.machine import describe_machine, tell
from benchmarks.quality_table import serving

HIDDEN, INTERMEDIATE, HEADS = 1024, 2816, 16


def main() -> None:
    """Write, compress, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="gptq-int4-g128")
    parser.add_argument("--layers", type=int, default=110)
    parser.add_argument("--limit-mib", type=int, default=704)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--output", type=Path, help="also write the result there as JSON")
    arguments = parser.parse_args()
    limit_bytes = arguments.limit_mib * 2**20
    os.environ["SLIMSERVE_JOB_MEMORY_BYTES"] = str(limit_bytes)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        base = Path(folder) / "base"
        weight_bytes = write_model(base, arguments.layers)
        (Path(folder) / "data").mkdir()
        with serving(Path(folder) / "data") as client:
            job, peak_rss_bytes, seconds = compress(client, base, arguments)
    result = {
        "benchmark": "larger_than_memory",
        "machine": describe_machine(),
        "method": arguments.method,
        "layers": arguments.layers,
        "weight_bytes": weight_bytes,
        "limit_bytes": limit_bytes,
        "weights_over_limit": round(weight_bytes / limit_bytes, 2),
        "largest_rss_bytes": peak_rss_bytes,
        "seconds": round(seconds, 1),
        "state": job["state"],
        "error": job["error"],
        "variant_bytes": job["result"] and job["result"]["weight_bytes"],
    }
    tell(result, arguments.output)
    sys.exit(job["state"] != "succeeded")


def write_model(folder: Path, num_layers: int) -> int:
    """A random Llama in bf16, one file per layer, with the embedded model's tokenizer. Returns the weights' bytes."""
    folder.mkdir()
    source = embedded.model_path()
    vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=num_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    outside = {
        "model.embed_tokens.weight": (vocab_size, HIDDEN),
        "lm_head.weight": (vocab_size, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    weight_map: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate([outside, *(layer_shapes(index) for index in range(num_layers))]):
        file = f"model-{number + 1:05d}-of-{num_layers + 1:05d}.safetensors"
        chance = torch.Generator().manual_seed(number)
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape).normal_(0, 0.02, generator=chance).to(torch.bfloat16)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def layer_shapes(index: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one decoder layer."""
    prefix = f"model.layers.{index}."
    return {
        f"{prefix}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
        f"{prefix}self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
        f"{prefix}self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
        f"{prefix}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        f"{prefix}mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        f"{prefix}mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        f"{prefix}input_layernorm.weight": (HIDDEN,),
        f"{prefix}post_attention_layernorm.weight": (HIDDEN,),
    }


def compress(client: httpx.Client, base: Path, arguments: argparse.Namespace) -> tuple[dict[str, Any], int, float]:
    """The finished job, the largest resident set that it reported while it compressed, and its seconds."""
    registered = client.post("/v1/bases", json={"model": str(base), "name": "large"})
    registered.raise_for_status()
    body = {
        "model": "large",
        "method": arguments.method,
        "calibration": {"num_samples": arguments.samples, "sequence_length": arguments.sequence_length},
        # random weights: only that the files are right and finite can be verified
        "max_kl": 100.0,
    }
    start_s = time.monotonic()
    accepted = client.post("/v1/quantize", json=body)
    accepted.raise_for_status()
    largest = 0
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{accepted.json()['id']}").json()
        progress = job["progress"]
        if progress is not None and progress["phase"] == "compressing":
            largest = max(largest, progress["rss_bytes"])
            print(f"{progress['done']}/{progress['total']} {progress['module']}", file=sys.stderr)
        if job["finished"] is not None:
            return job, largest, time.monotonic() - start_s
        time.sleep(1)


if __name__ == "__main__":
    main()
