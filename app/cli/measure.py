"""What `slimserve bench` measures of a served variant, through the HTTP API alone.

Speed: medians over streamed requests, each with a prompt of its own so that no prefix cache helps, variants in turn
(A, B, A, B) so that a slow minute of the machine hurts all alike. Perplexity: exp of the mean negative log
probability of every token but the first of each window; a text longer than the context is cut into windows as long as
that, and a text begins as the tokenizer begins one, for instance with its bos token.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.cli.client import Client
from app.cli.closed_loop import LoopTimes, Workload, closed_loop, prompts
from app.cli.terminal import CommandFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The numbers of one variant at so many streams: bytes, seconds, medians; None where nothing was measured.

    Times are over requests. tokens_per_s is that of all streams together, of a single one the median over requests.
    """

    variant: str
    streams: int
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
    num_requests: int


def measure(
    client: Client,
    variants: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    workload: Workload,
    max_perplexity_tokens: int,
    on_progress: Callable[[float], None] = lambda _: None,
) -> list[Row]:
    """One row per ready variant and level, in the order given. No perplexity where `max_perplexity_tokens` is 0.

    on_progress: is told the share that is done, from 0 to 1.
    """
    for one in variants:
        _check_context(one, workload)
    documents = {one["id"]: encode(client, one["id"], texts) for one in variants}
    ids = {model: [token for document in found for token in document] for model, found in documents.items()}
    loops = _interleaved(client, ids, workload, on_progress)
    # A cast has no files of its own: what it needs on disk is its base. A stand-in needs nothing.
    base_bytes = {base["id"]: base["weight_bytes"] for base in client.get("/v1/bases")["data"]}
    rows = []
    for one in variants:
        perplexity, num_scored = None, 0
        if max_perplexity_tokens > 0:
            windows = cut(documents[one["id"]], one["max_model_len"], max_perplexity_tokens)
            perplexity, num_scored = perplexity_of(client, one["id"], windows)
        fresh = client.get(f"/v1/variants/{one['id']}")
        bytes_on_disk = fresh["bytes_on_disk"] or base_bytes.get(fresh["base"])
        rows += [
            _row(fresh, bytes_on_disk, streams, loops[one["id"], streams], perplexity, num_scored)
            for streams in workload.streams
        ]
    return rows


def encode(client: Client, model: str, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text."""
    return [
        client.post("/tokenize", {"model": model, "prompt": text, "add_special_tokens": True})["tokens"]
        for text in texts
    ]


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
    client: Client, ids: Mapping[str, Sequence[int]], workload: Workload, on_progress: Callable[[float], None]
) -> dict[tuple[str, int], list[LoopTimes]]:
    """The loops of each variant, named in `ids` with the tokens of its text, at each level."""
    sources = {model: prompts(tokens, workload) for model, tokens in ids.items()}
    # Loop 0 of a level warms up and is not counted. A single client's requests are a loop each, so that variants can
    # take turns request by request.
    turns = [
        (loop, model, streams, workload.num_runs if streams > 1 and loop > 0 else 1)
        for streams in workload.streams
        for loop in range(2 if streams > 1 else workload.num_runs + 1)
        for model in ids
    ]
    loops: dict[tuple[str, int], list[LoopTimes]] = {}
    for done, (loop, model, streams, num_each) in enumerate(turns):
        on_progress(done / len(turns))
        shares = [[next(sources[model]) for _ in range(num_each)] for _ in range(streams)]
        times = closed_loop(client, model, shares, workload.num_completion_tokens)
        if loop > 0:
            loops.setdefault((model, streams), []).append(times)
    on_progress(1.0)
    return loops


def _check_context(variant: Mapping[str, Any], workload: Workload) -> None:
    length = workload.num_prompt_tokens
    if length + workload.num_completion_tokens > variant["max_model_len"]:
        raise CommandFailed(
            f"{length} prompt tokens and {workload.num_completion_tokens} more do not fit the context of "
            f"{variant['id']}, {variant['max_model_len']} tokens; lower --prompt-tokens or --tokens"
        )


def _row(
    variant: Mapping[str, Any],
    bytes_on_disk: int | None,
    streams: int,
    loops: Sequence[LoopTimes],
    perplexity: float | None,
    num_scored: int,
) -> Row:
    timings = [timing for loop in loops for timing in loop.timings]
    tpots = [timing.tpot_s for timing in timings if timing.tpot_s is not None]
    quality = variant.get("quality") or {}
    return Row(
        variant=variant["id"],
        streams=streams,
        device_name=variant["device_name"],
        bytes_on_disk=bytes_on_disk,
        weight_bytes=variant["weight_bytes"],
        process_bytes=variant["process_bytes"],
        ttft_s=statistics.median(timing.ttft_s for timing in timings),
        tpot_s=statistics.median(tpots) if tpots else None,
        tokens_per_s=statistics.median(loop.tokens_per_s for loop in loops),
        perplexity=perplexity,
        num_perplexity_tokens=num_scored,
        kl_mean=quality.get("kl_mean"),
        top1_agreement=quality.get("top1_agreement"),
        num_requests=len(timings),
    )
