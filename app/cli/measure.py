"""What `slimserve bench` measures of a served variant, through the HTTP API alone.

Speed: medians over streamed runs, each with a prompt of its own so that no prefix cache helps, variants in turn
(A, B, A, B) so that a slow minute of the machine hurts all alike. Perplexity: exp of the mean negative log
probability of every token but the first of each window; a text longer than the context is cut into windows as long as
that, and a text begins as the tokenizer begins one, for instance with its bos token.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.cli.client import Client
from app.cli.completion import Completion, Timing
from app.cli.terminal import CommandFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each timed request looks like, in tokens, and how many are timed per variant."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The numbers of one variant: bytes, seconds, medians over runs; None where nothing was measured."""

    variant: str
    device_name: str
    bytes_on_disk: int | None
    weight_bytes: int | None
    process_bytes: int | None
    ttft_s: float
    tpot_s: float | None
    tokens_per_s: float
    perplexity: float | None
    num_perplexity_tokens: int
    kl_mean: float | None
    top1_agreement: float | None
    num_runs: int


def measure(
    client: Client,
    variants: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    workload: Workload,
    max_perplexity_tokens: int,
) -> list[Row]:
    """One row per ready variant, in the order given. No perplexity where `max_perplexity_tokens` is 0."""
    num_needed = max(max_perplexity_tokens, workload.num_prompt_tokens * (workload.num_runs + 1))
    documents = {one["id"]: encode(client, one["id"], texts, num_needed) for one in variants}
    prompts = {model: [token for document in found for token in document] for model, found in documents.items()}
    timings = _interleaved(client, variants, prompts, workload)
    # A cast has no files of its own: what it needs on disk is its base.
    base_bytes = {base["id"]: base["weight_bytes"] for base in client.get("/v1/bases")["data"]}
    rows = []
    for one in variants:
        perplexity, num_scored = None, 0
        if max_perplexity_tokens > 0:
            windows = cut(documents[one["id"]], one["max_model_len"], max_perplexity_tokens)
            perplexity, num_scored = perplexity_of(client, one["id"], windows)
        fresh = client.get(f"/v1/variants/{one['id']}")
        bytes_on_disk = fresh["bytes_on_disk"] or base_bytes[fresh["base"]]
        rows.append(_row(fresh, bytes_on_disk, timings[one["id"]], perplexity, num_scored))
    return rows


def encode(client: Client, model: str, texts: Iterable[str], num_needed: int) -> list[list[int]]:
    """Token ids of the first texts that have `num_needed` tokens together, or of all of them."""
    documents: list[list[int]] = []
    num_tokens = 0
    for text in texts:
        if num_tokens >= num_needed:
            break
        tokens = client.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": True})["tokens"]
        documents.append(tokens)
        num_tokens += len(tokens)
    return documents


def cut(documents: Iterable[Sequence[int]], window_tokens: int, max_tokens: int) -> list[Sequence[int]]:
    """Disjoint windows of the documents, none over the end of a document, `max_tokens` at most in all."""
    windows: list[Sequence[int]] = []
    num_left = max_tokens
    for document in documents:
        for start in range(0, min(len(document), num_left), window_tokens):
            windows.append(document[start : min(start + window_tokens, num_left)])
        num_left = max(0, num_left - len(document))
    return [window for window in windows if len(window) > 1]


def perplexity_of(client: Client, model: str, windows: Iterable[Sequence[int]]) -> tuple[float | None, int]:
    """Perplexity of the model over windows of token ids, and the number of tokens that were scored."""
    logprobs = [value for window in windows for value in _score(client, model, window) if value is not None]
    return (math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else None), len(logprobs)


def _score(client: Client, model: str, ids: Sequence[int]) -> list[float | None]:
    body = {"model": model, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
    found: list[float | None] = client.post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    return found


def _interleaved(
    client: Client, variants: Sequence[Mapping[str, Any]], ids: Mapping[str, Sequence[int]], workload: Workload
) -> dict[str, list[Timing]]:
    timings: dict[str, list[Timing]] = {one["id"]: [] for one in variants}
    # Run 0 warms up and is not counted.
    for run in range(workload.num_runs + 1):
        for one in variants:
            prompt = _prompt(ids[one["id"]], run, workload, one)
            timing = timed(client, one["id"], prompt, workload.num_completion_tokens)
            if run > 0:
                timings[one["id"]].append(timing)
    return timings


def _prompt(ids: Sequence[int], run: int, workload: Workload, variant: Mapping[str, Any]) -> list[int]:
    length = workload.num_prompt_tokens
    if length + workload.num_completion_tokens > variant["max_model_len"]:
        raise CommandFailed(
            f"{length} prompt tokens and {workload.num_completion_tokens} more do not fit the context of "
            f"{variant['id']}, {variant['max_model_len']} tokens; lower --prompt-tokens or --tokens"
        )
    start = run * length
    if start + length > len(ids):
        raise CommandFailed(
            f"the text has {len(ids)} tokens, too few for {workload.num_runs} runs of {length}; "
            "lower --runs or --prompt-tokens"
        )
    return list(ids[start : start + length])


def timed(client: Client, model: str, prompt: Sequence[int], num_tokens: int) -> Timing:
    """The timings of one greedy request for exactly `num_tokens` tokens."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    completion = Completion(client, "/v1/completions", body)
    for _ in completion:
        pass
    return completion.timing


def _row(
    variant: Mapping[str, Any],
    bytes_on_disk: int,
    timings: Iterable[Timing],
    perplexity: float | None,
    num_scored: int,
) -> Row:
    runs = list(timings)
    tpots = [timing.tpot_s for timing in runs if timing.tpot_s is not None]
    quality = variant.get("quality") or {}
    return Row(
        variant=variant["id"],
        device_name=variant["device_name"],
        bytes_on_disk=bytes_on_disk,
        weight_bytes=variant["weight_bytes"],
        process_bytes=variant["process_bytes"],
        ttft_s=statistics.median(timing.ttft_s for timing in runs),
        tpot_s=statistics.median(tpots) if tpots else None,
        tokens_per_s=statistics.median(timing.tokens_per_s for timing in runs),
        perplexity=perplexity,
        num_perplexity_tokens=num_scored,
        kl_mean=quality.get("kl_mean"),
        top1_agreement=quality.get("top1_agreement"),
        num_runs=len(runs),
    )
