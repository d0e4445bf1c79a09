"""What do variants lose that answer at the same time on one CPU?

Loads several variants of the embedded model and has each generate, in rounds: one after the other, then all at once.
Threads cannot add cores, so both should take about as long. The ratio is

    (tokens of all) / (time of all at once)  :  (tokens of all) / (sum of the times one after the other)

1 means that nothing is lost; above 1, one variant's waiting is another's computing.

    python -m benchmarks.side_by_side
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from app.cli import server_process
from app.cli.client import Client
from app.cli.jobs import follow
from benchmarks.machine import describe_machine, tell

METHODS = ("int8", "nf4", "rtn-int4-g32", "rtn-int3-g32", "fp8")


def generate(client: Client, variant: str, num_tokens: int) -> float:
    """Milliseconds per token of one answer."""
    body = {
        "model": variant,
        "prompt": "Once upon a time",
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    return float(client.post("/v1/generate", body)["timings"]["tpot_ms"])


def take_turns(client: Client, variants: list[str], num_tokens: int) -> dict[str, float]:
    """One round: tokens per second one after the other and at once, and milliseconds per token in both."""
    total = num_tokens * len(variants)
    start_s = time.perf_counter()
    alone_ms = [generate(client, variant, num_tokens) for variant in variants]
    alone_s = time.perf_counter() - start_s
    with ThreadPoolExecutor(len(variants)) as pool:
        start_s = time.perf_counter()
        together_ms = list(pool.map(lambda variant: generate(client, variant, num_tokens), variants))
        together_s = time.perf_counter() - start_s
    return {
        "one_by_one_tokens_per_s": total / alone_s,
        "at_once_tokens_per_s": total / together_s,
        "one_by_one_tpot_ms": median(alone_ms),
        "at_once_tpot_ms": median(together_ms),
        "ratio": alone_s / together_s,
    }


def measure(client: Client, counts: list[int], num_tokens: int, rounds: int) -> list[dict[str, Any]]:
    """The medians over rounds, for each number of variants."""
    variants = ["slimstory/bf16"]
    for method in METHODS[: max(counts) - 1]:
        job = follow(client, client.post("/v1/quantize", {"model": "slimstory", "method": method})["id"])
        variants.append(job["variant"])
    for variant in variants:
        client.post("/v1/load", {"model": variant, "wait": True})
        generate(client, variant, num_tokens)
    found = []
    for count in counts:
        turns = [take_turns(client, variants[:count], num_tokens) for _ in range(rounds)]
        numbers = {name: round(median(turn[name] for turn in turns), 3) for name in turns[0]}
        found.append({"num_variants": count, **numbers})
        print(found[-1], file=sys.stderr)
    return found


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[2, 3, 6], help="variants at once, 6 at most")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result there as JSON")
    arguments = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        port = server_process.free_port("127.0.0.1", 0)
        server = server_process.start(Path(folder), host="127.0.0.1", port=port)
        try:
            levels = measure(Client(server.url), arguments.counts, arguments.new_tokens, arguments.rounds)
        finally:
            server.stop()
    machine["load_average_after"] = os.getloadavg()
    tell({"benchmark": "side_by_side", "machine": machine, "levels": levels}, arguments.output)


if __name__ == "__main__":
    main()
