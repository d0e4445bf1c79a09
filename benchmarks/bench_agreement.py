"""Do slimserve's own numbers agree with those of other benchmark clients that ask the same server?

Starts a server and lets four programs time it in turn, several rounds, at 1, 4 and 16 requests at once with prompts and
answers of one length, greedily and to the last token:

    measure   POST /v1/measure: stamped in the front end, between it and the worker. No HTTP, no text, no client.
    bench     `slimserve bench`: stamped in a client, as the other two.
    vllm      vLLM's `bench serve` on /v1/completions.
    guidellm  guidellm's `concurrent` profile on /v1/completions.

The numbers mean the same in all four: TTFT is request to first token; TPOT is (last token - first)/(n - 1), which
guidellm calls inter-token latency (its "time per output token" has the first one in it); throughput is completion
tokens of all requests over the time from the first request to the last token. Each time is a median over requests, and
what is told is the median over rounds; a ratio is the median of the rounds' ratios, so that a slow minute of the
machine cancels out.

What `bench` and the others see on top of `measure` is HTTP, and the client's own work, which competes with the server
for the same cores. Two kinds of variants show how much that is:

    padded/*  the embedded model between zeros: the same text at the cost of a model of 86 M parameters. A token takes
              long enough that the clients' work hardly matters.
    echo/*    a stand-in that computes nothing: its time per token is HTTP and the client and nothing else.

Make the environments by `make interop` (vLLM) and `make clients` (guidellm), then

    python -m benchmarks.bench_agreement \\
        --vllm-python .venv-vllm/bin/python --guidellm .venv-clients/harness/bin/guidellm
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from app import embedded
from app.cli import server_process
from app.cli.client import Client
from app.cli.jobs import follow
from app.core.speed import rounds
from benchmarks.machine import describe_machine, tell

ROOT: Final = Path(__file__).resolve().parent.parent
CASTS: Final = ("bf16", "fp16", "fp32")
NUMBERS: Final = ("ttft_ms", "tpot_ms", "tokens_per_s")
PAIRS: Final = (
    ("bench", "vllm"),
    ("bench", "guidellm"),
    ("guidellm", "vllm"),
    ("measure", "vllm"),
    ("measure", "bench"),
)
PADDED_LAYERS, PADDED_WIDTH = 24, 9216


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What one program said of one level in one round."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """What is timed: so many requests of one length to one variant, so many at once. seed: another in each round."""

    url: str
    variant: str
    streams: int
    prompt_tokens: int
    new_tokens: int
    seed: int

    @property
    def num_each(self) -> int:
        """Requests that each of the streams sends, as many as `measure` takes."""
        return rounds(self.streams)

    @property
    def num_requests(self) -> int:
        """Requests of all streams."""
        return self.num_each * self.streams


def ask_measure(level: Level) -> Numbers:
    """slimserve's measurement at the server."""
    client = Client(level.url)
    body = {
        "model": level.variant,
        "quality": False,
        "streams": [level.streams],
        "prompt_tokens": level.prompt_tokens,
        "new_tokens": level.new_tokens,
    }
    job = follow(client, client.post("/v1/measure", body)["id"])
    if job["state"] != "succeeded":
        raise RuntimeError(job["error"]["message"])
    (found,) = job["result"]["speed"]["levels"]
    return Numbers(ttft_ms=found["ttft_ms"]["p50"], tpot_ms=found["tpot_ms"]["p50"], tokens_per_s=found["tokens_per_s"])


def ask_bench(level: Level) -> Numbers:
    """slimserve's measurement at a client."""
    command = [sys.executable, "-m", "app", "--url", level.url, "bench", level.variant, "--json"]
    command += ["--streams", str(level.streams), "--runs", str(level.num_each), "--perplexity-tokens", "0"]
    command += ["--prompt-tokens", str(level.prompt_tokens), "--tokens", str(level.new_tokens)]
    (row,) = json.loads(run(command))
    return Numbers(ttft_ms=1000 * row["ttft_s"], tpot_ms=1000 * row["tpot_s"], tokens_per_s=row["tokens_per_s"])


def ask_vllm(python: Path, level: Level) -> Numbers:
    """vLLM's bench. Random tokens are its prompts; decoded and encoded again they are now and then a token longer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(python), str(ROOT / "tests/clients/vllm_bench.py"), "--backend", "openai"]
        command += ["--endpoint", "/v1/completions", "--base-url", level.url, "--model", level.variant]
        command += ["--tokenizer", str(embedded.model_path()), "--dataset-name", "random", "--seed", str(level.seed)]
        command += ["--random-input-len", str(level.prompt_tokens), "--random-output-len", str(level.new_tokens)]
        command += ["--ignore-eos", "--temperature", "0", "--disable-tqdm", "--num-prompts", str(level.num_requests)]
        command += ["--max-concurrency", str(level.streams), "--num-warmups", str(level.streams)]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        run(command)
        found = json.loads((Path(folder) / "result.json").read_text())
    if found["total_output_tokens"] != level.num_requests * level.new_tokens:
        raise RuntimeError(f"vLLM's bench counts {found['total_output_tokens']} tokens")
    return Numbers(
        ttft_ms=found["median_ttft_ms"], tpot_ms=found["median_tpot_ms"], tokens_per_s=found["output_throughput"]
    )


def ask_guidellm(program: Path, level: Level) -> Numbers:
    """guidellm's concurrent profile. It cannot leave its first requests out by their number, so nothing warms up."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        data = f"kind=synthetic_text,prompt_tokens={level.prompt_tokens},output_tokens={level.new_tokens}"
        backend = f"kind=openai_http,target={level.url},model={level.variant},request_format=/v1/completions"
        command = [str(program), "run", "--disable-console", "--backend", backend, "--data", data]
        command += ["--tokenizer", f"kind=huggingface_auto,model={embedded.model_path()}"]
        command += [
            "--profile",
            f"kind=concurrent,streams={level.streams}",
            "--seed",
            f"kind=static,value={level.seed}",
        ]
        command += ["--constraint", f"kind=max_requests,count={level.num_requests}"]
        run([*command, "--output", f"kind=json,path={report}"])
        (found,) = json.loads(report.read_text())["benchmarks"]
    metrics = found["metrics"]
    num_tokens = metrics["output_token_count"]["successful"]["total_sum"]
    if num_tokens != level.num_requests * level.new_tokens:
        raise RuntimeError(f"guidellm counts {num_tokens} tokens")
    return Numbers(
        ttft_ms=metrics["time_to_first_token_ms"]["successful"]["median"],
        # weighted by its tokens, as if each gap were a value of its own; the requests here are all of one length
        tpot_ms=metrics["inter_token_latency_ms"]["successful"]["median"],
        tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
    )


def run(command: list[str]) -> str:
    """What a program wrote; it is kept from everything but this machine. Raises RuntimeError unless it ends well."""
    offline = {"NO_PROXY": "*", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def write_padded(folder: Path) -> int:
    """The embedded model, deeper and wider, that says the same; the number of its parameters.

    What is new is random and goes through zeros: the columns of down_proj behind the old width, and o_proj and
    down_proj of the new layers. Zeros take as long to multiply as anything.
    """
    source = embedded.model_path()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    num_layers, width = config["num_hidden_layers"], config["intermediate_size"]
    config |= {"num_hidden_layers": PADDED_LAYERS, "intermediate_size": PADDED_WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for path in source.glob("*.safetensors"):
        tensors |= load_file(path)
    chance = torch.Generator().manual_seed(0)
    prefix = "model.layers.0."
    shapes = {name.removeprefix(prefix): one.shape for name, one in tensors.items() if name.startswith(prefix)}
    for index in range(PADDED_LAYERS):
        for name, shape in shapes.items():
            full = f"model.layers.{index}.{name}"
            wide = [PADDED_WIDTH if size == width and "mlp" in name else size for size in shape]
            filled = torch.randn(wide, generator=chance).mul_(0.02).to(torch.bfloat16)
            if name.endswith(("o_proj.weight", "down_proj.weight")) or len(wide) == 1:
                filled.zero_()
            if index < num_layers:
                filled[tuple(slice(size) for size in shape)] = tensors[full]
            tensors[full] = filled
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(one.numel() for one in tensors.values())


def make_ready(client: Client, variant: str, folder: Path) -> None:
    """Load the variant; its base is written and it is compressed first where it has to be."""
    base, _, method = variant.partition("/")
    known = {one["id"] for one in client.get("/v1/variants")["data"]}
    if base == "padded" and not (folder / base).exists():
        print(f"padded: {write_padded(folder / base):,} parameters", file=sys.stderr)
        client.post("/v1/load", {"model": str(folder / base), "name": base, "dtype": "bf16", "wait": True})
        client.post("/v1/unload", {"model": f"{base}/bf16", "wait": True})
    if base != "echo" and method not in CASTS and variant not in known:
        job = follow(client, client.post("/v1/quantize", {"model": base, "method": method, "max_kl": 100.0})["id"])
        if job["state"] != "succeeded":
            raise RuntimeError(job["error"]["message"])
    body = {"model": base, "dtype": method} if method in CASTS else {"model": variant}
    client.post("/v1/load", {**body, "wait": True})


def take_turns(programs: dict[str, Callable[[Level], Numbers]], level: Level, rounds: int) -> dict[str, list[Numbers]]:
    """The numbers of each program, one per round; another one begins each round."""
    found: dict[str, list[Numbers]] = {name: [] for name in programs}
    names = list(programs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seed = 1000 * level.seed + turn
            numbers = programs[name](Level(**{**asdict(level), "seed": seed}))
            found[name].append(numbers)
            print(f"{level.variant} {level.streams} {name}: {numbers}", file=sys.stderr)
    return found


def summary(found: dict[str, list[Numbers]], tolerance: float) -> dict[str, Any]:
    """Medians per program, and how many times one program's number is another's."""
    medians = {
        name: {number: round(median(getattr(one, number) for one in all_of), 3) for number in NUMBERS}
        for name, all_of in found.items()
    }
    ratios: dict[str, Any] = {}
    for one, other in PAIRS:
        if one not in found or other not in found:
            continue
        each = {
            number: median(
                getattr(a, number) / getattr(b, number) for a, b in zip(found[one], found[other], strict=True)
            )
            for number in NUMBERS
        }
        agree = {number: abs(ratio - 1) <= tolerance for number, ratio in each.items()}
        ratios[f"{one} / {other}"] = {number: round(ratio, 3) for number, ratio in each.items()} | {"agree": agree}
    return {
        "medians": medians,
        "ratios": ratios,
        "rounds": {name: [asdict(x) for x in xs] for name, xs in found.items()},
    }


def measure_all(programs: dict[str, Callable[[Level], Numbers]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every variant at every level, on one server, of which no other variant is loaded meanwhile."""
    levels = []
    with tempfile.TemporaryDirectory() as folder:
        server = server_process.start(Path(folder), host="127.0.0.1", port=server_process.free_port("127.0.0.1", 0))
        try:
            client = Client(server.url)
            for number, variant in enumerate(arguments.variants):
                make_ready(client, variant, Path(folder))
                # a stand-in cannot be measured at the server: there is nothing to be measured
                chosen = {name: ask for name, ask in programs.items() if name != "measure" or "echo/" not in variant}
                for streams in arguments.streams:
                    level = Level(
                        url=server.url,
                        variant=variant,
                        streams=streams,
                        prompt_tokens=arguments.prompt_tokens,
                        new_tokens=arguments.new_tokens,
                        seed=100 * number + streams,
                    )
                    found = take_turns(chosen, level, arguments.rounds)
                    levels.append({"variant": variant, "streams": streams} | summary(found, arguments.tolerance))
                client.post("/v1/unload", {"model": variant, "wait": True})
        finally:
            server.stop()
    return levels


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, help="python of an environment with vllm; left out without it")
    parser.add_argument("--guidellm", type=Path, help="the program guidellm; left out without it")
    variants = [
        "slimstory/bf16",
        "slimstory/int8",
        "slimstory/gptq-int4-g32",
        "padded/bf16",
        "padded/int8",
        "echo/bench",
    ]
    parser.add_argument("--variants", nargs="+", default=variants, help="of the bases slimstory, padded and echo")
    parser.add_argument(
        "--streams", nargs="+", type=int, default=[1, 4, 16], help="requests at once, one or several levels"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times that each program has its turn")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--num-threads", type=int, default=1, help="torch threads of a worker; leave cores to the rest")
    parser.add_argument("--tolerance", type=float, default=0.1, help="share by which numbers that agree may differ")
    parser.add_argument("--output", type=Path, help="also write the result there as JSON")
    arguments = parser.parse_args()
    programs: dict[str, Callable[[Level], Numbers]] = {"measure": ask_measure, "bench": ask_bench}
    if arguments.vllm_python is not None:
        programs["vllm"] = partial(ask_vllm, arguments.vllm_python.absolute())
    if arguments.guidellm is not None:
        programs["guidellm"] = partial(ask_guidellm, arguments.guidellm.absolute())
    os.environ |= {"SLIMSERVE_NUM_THREADS": str(arguments.num_threads), "SLIMSERVE_ENABLE_ECHO": "1"}
    machine = describe_machine()
    levels = measure_all(programs, arguments)
    machine["load_average_after"] = os.getloadavg()
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | list)}
    result = {"benchmark": "bench_agreement", "machine": machine, "settings": settings, "levels": levels}
    tell(result, arguments.output)


if __name__ == "__main__":
    main()
