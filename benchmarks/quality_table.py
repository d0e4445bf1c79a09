"""What every method and bit width costs in quality: perplexity, KL to the base and bytes, as a Markdown table.

    python -m benchmarks.quality_table [FOLDER ...] [--methods NAME ...] [--layout NAME] [--max-tokens N]

Starts a real server on a temporary folder, makes every variant of the embedded model and of the model folders given
with POST /v1/quantize, measures each with POST /v1/measure on the held-out stories, and prints one row for each. A
method that the server refuses, or whose variant fails its check, has its reason in place of numbers.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

METHODS = (
    *("cast-fp16", "int8", "llm-int8", "fp8", "fp8-block128", "smoothquant-w8a8", "nf4", "nf4-single", "fp4"),
    *(f"{method}-int{bits}-g32" for bits in (8, 4, 3, 2) for method in ("rtn", "gptq", "awq")),
    *(f"{method}-int4-{form}" for form in ("g32-asym", "channel") for method in ("rtn", "gptq")),
    *("auto-4.5bits-g32", "auto-3.5bits-g32"),
)
HEADER = (
    "| method | MB | perplexity | 95 % | KL(base, variant) | p99 | same first choice |\n|---|---|---|---|---|---|---|"
)
START_S = 120


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--layout", help="of all variants; each method's own if not given")
    parser.add_argument("--max-tokens", type=int, default=8000)
    arguments = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, commit {_commit()}, {_hardware()}, Python {platform.python_version()}.")
    with tempfile.TemporaryDirectory() as data_dir, serving(Path(data_dir)) as client:
        for base in ["slimstory", *(_register(client, folder) for folder in arguments.folders)]:
            print(f"\n## {base}\n\n{HEADER}")
            print(_row("(base)", _measure(client, base, arguments.max_tokens), _base_bytes(client, base)), flush=True)
            for method in arguments.methods:
                print(_method_row(client, base, method, arguments.layout, arguments.max_tokens), flush=True)


@contextmanager
def serving(data_dir: Path) -> Iterator[httpx.Client]:
    """A server of its own, and a client of it."""
    command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", str(data_dir), "--num-threads", "1"]
    command += ["--auto-measure", "off"]
    with (data_dir / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        url = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
        with httpx.Client(base_url=url.rstrip("/.,"), timeout=START_S, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def _register(client: httpx.Client, folder: Path) -> str:
    answer = client.post("/v1/load", json={"model": str(folder.resolve()), "wait": True})
    answer.raise_for_status()
    variant = answer.json()
    client.post("/v1/unload", json={"model": variant["id"]}).raise_for_status()
    return str(variant["base"])


def _method_row(client: httpx.Client, base: str, method: str, layout: str | None, max_tokens: int) -> str:
    body = {"model": base, "method": method, "layout": layout, "max_kl": 100.0}
    answer = client.post("/v1/quantize", json=body)
    if answer.is_error:
        return f"| {method} | refused: {answer.json()['error']['message']} | | | | | |"
    job = _finished(client, answer.json()["id"])
    if job["state"] != "succeeded":
        return f"| {method} | {job['state']}: {job['error']['message']} | | | | | |"
    return _row(method, _measure(client, job["variant"], max_tokens), job["result"]["weight_bytes"])


def _measure(client: httpx.Client, model: str, max_tokens: int) -> dict[str, Any]:
    answer = client.post("/v1/measure", json={"model": model, "max_tokens": max_tokens, "top_k": 4096, "speed": False})
    answer.raise_for_status()
    job = _finished(client, answer.json()["id"])
    if job["state"] != "succeeded":
        raise SystemExit(f"the measurement of {model} {job['state']}: {job['error']}")
    quality: dict[str, Any] = job["result"]["quality"]
    return quality


def _finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if job["finished"] is not None:
            return job
        time.sleep(0.2)


def _base_bytes(client: httpx.Client, name: str) -> int:
    return int(next(base["weight_bytes"] for base in client.get("/v1/bases").json()["data"] if base["id"] == name))


def _row(method: str, found: dict[str, Any], weight_bytes: int) -> str:
    low, high = found["perplexity_interval"] or (float("nan"), float("nan"))
    return (
        f"| {method} | {weight_bytes / 1e6:.2f} | {found['perplexity']:.3f} | {low:.3f} to {high:.3f} "
        f"| {found['kl_mean']:.5f} | {found['kl_p99']:.4f} | {100 * found['top1_agreement']:.1f} % |"
    )


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs, one thread"


if __name__ == "__main__":
    main()
