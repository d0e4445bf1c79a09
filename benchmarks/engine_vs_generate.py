"""The engine against transformers' `generate` on random weights of a real shape: decode speed at several streams.

Both run the same weights in one process, the engine's prepared as at every load, interleaved A, B, A, B; each pair
gives a ratio, and the median of the ratios is what counts, because a shared machine's speed drifts between pairs.
Nothing stops early (ignore_eos), prompts are random tokens, quality is not looked at. `sequential_ratio` compares with
`generate` run once per prompt, one after the other, as a server without batching does.

    python benchmarks/engine_vs_generate.py --dtype bf16 --streams 1 8
    python benchmarks/engine_vs_generate.py --device cuda --dtype bf16 --streams 1 8 32 --new-tokens 128 --repeats 3
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import describe_machine, read_bandwidth_bytes_per_s, tell
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from workers.engine.engine import Engine, EngineLimits
from workers.engine.lane import build_runner
from workers.formats.prepacked import prepack_linears
from workers.protocol.messages import Generate
from workers.protocol.specs import SamplingParams

# The shape of Qwen2.5-0.5B with a smaller vocabulary: 0.4 billion parameters, 14 query heads on 2 key heads.
SHAPE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32_768,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model of SHAPE with N(0, 0.02) weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def synchronize(device: str) -> None:
    """Wait for the device, so that a clock read means what it says."""
    if device != "cpu":
        torch.cuda.synchronize()


def run_generate(model: PreTrainedModel, prompts: list[list[int]], num_new: int, device: str) -> float:
    """Seconds for `generate` to continue all prompts (of one length) by `num_new` greedy tokens."""
    inputs = torch.tensor(prompts, device=device)
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
        )
    synchronize(device)
    seconds = time.perf_counter() - start
    if output.shape[1] != inputs.shape[1] + num_new:
        raise RuntimeError(f"generate made {output.shape[1] - inputs.shape[1]} tokens, {num_new} were asked for")
    return seconds


def run_engine(engine: Engine, prompts: list[list[int]], num_new: int, device: str) -> float:
    """Seconds for the engine to do the same work as `run_generate`."""
    params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
    num_tokens = 0
    synchronize(device)
    start = time.perf_counter()
    with torch.inference_mode():
        for i, prompt in enumerate(prompts):
            engine.add(Generate(request_id=str(i), prompt_ids=prompt, params=params))
        while not engine.is_idle:
            updates, _ = engine.step()
            num_tokens += sum(len(update.token_ids) for update in updates)
    synchronize(device)
    seconds = time.perf_counter() - start
    if num_tokens != len(prompts) * num_new:
        raise RuntimeError(f"the engine made {num_tokens} tokens, {len(prompts) * num_new} were asked for")
    return seconds


def compare(model: PreTrainedModel, engine: Engine, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of interleaved runs at one number of streams, with new prompts each time so that no prefix is cached."""
    generator = torch.Generator().manual_seed(streams)
    engine_s, generate_s, sequential_s = [], [], []
    for repeat in range(args.repeats + 1):
        shape = (streams, args.prompt_tokens)
        prompts = torch.randint(0, SHAPE["vocab_size"], shape, generator=generator).tolist()
        a = run_generate(model, prompts, args.new_tokens, args.device)
        b = run_engine(engine, prompts, args.new_tokens, args.device)
        c = sum(run_generate(model, [prompt], args.new_tokens, args.device) for prompt in prompts) if streams > 1 else a
        if repeat == 0:
            continue  # warm-up
        generate_s.append(a)
        engine_s.append(b)
        sequential_s.append(c)
        print(f"streams {streams}: generate {a:.2f} s, engine {b:.2f} s, one by one {c:.2f} s", file=sys.stderr)
    num_tokens = streams * args.new_tokens
    return {
        "streams": streams,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "generate_tokens_per_s": round(num_tokens / median(generate_s), 2),
        "engine_tokens_per_s": round(num_tokens / median(engine_s), 2),
        "ratio": round(median(a / b for a, b in zip(generate_s, engine_s, strict=True)), 3),
        "sequential_ratio": round(median(c / b for c, b in zip(sequential_s, engine_s, strict=True)), 3),
        "generate_s": [round(s, 3) for s in generate_s],
        "engine_s": [round(s, 3) for s in engine_s],
        "sequential_s": [round(s, 3) for s in sequential_s],
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs of runs; one more warms up")
    parser.add_argument("--output", type=Path, help="also write the result there as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the result file if asked."""
    args = parse_arguments()
    plain = build_model(DTYPES[args.dtype], args.device)
    engine_model = copy.deepcopy(plain)
    prepack_linears(engine_model)
    choice = build_runner(
        engine_model,
        lane="packed",
        max_model_len=SHAPE["max_position_embeddings"],
        max_num_seqs=max(args.streams),
        kv_cache_bytes=2**30,
        verdict_dir=None,
    )
    limits = EngineLimits(
        max_model_len=SHAPE["max_position_embeddings"],
        max_num_seqs=max(args.streams),
        is_prefill_timed=args.device == "cpu",
    )
    engine = Engine(choice.runner, limits)
    result = {
        "benchmark": "engine_vs_generate",
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu",
        "read_bandwidth_gb_per_s": round(read_bandwidth_bytes_per_s() / 1e9, 2),
        "dtype": args.dtype,
        "num_parameters": sum(p.numel() for p in plain.parameters()),
        "runs": [compare(plain, engine, streams, args) for streams in args.streams],
    }
    tell(result, args.output)


if __name__ == "__main__":
    main()
