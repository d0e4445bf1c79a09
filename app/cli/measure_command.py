"""`slimserve measure`: quality, speed and size of a variant, by a job on the server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.jobs import describe, follow
from app.cli.options import JsonOption, client_of, text_of
from app.cli.terminal import CommandFailed, in_bytes, say, write_json


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(measure)


def measure(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Id of a variant, or a base for its uncompressed form.")],
    text: Annotated[
        Path | None, typer.Option(help="A text file of this machine.", show_default="fifty built-in stories")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens read at once.", show_default="512, or the model's limit")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window.", show_default="half a window")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text that are taken.")] = 20_000,
    kl: Annotated[bool, typer.Option("--kl/--no-kl", help="Also compare with the base.")] = True,
    quality: Annotated[bool, typer.Option("--quality/--no-quality", help="Perplexity, distance to the base.")] = True,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Times, memory and bytes.")] = True,
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Requests at once; give it once per level.", show_default="1, 4, 16, on a GPU 64 too"),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of each timed prompt, in tokens.", show_default="128")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of each timed answer, in tokens.", show_default="64")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a variant: how good it is, how fast it is, what it takes.

    Quality is perplexity, and how far predictions are from the base's; the first measurement on a text also reads the
    base, later ones find its numbers on disk. Intervals are 95 %. Speed is measured on the worker that serves the
    variant, or on one started for it, at the server: `slimserve bench` shows what a client sees.
    """
    client = client_of(ctx)
    body = {
        "model": model,
        "text": None if text is None else text_of(text),
        "window": window,
        "stride": stride,
        "max_tokens": max_tokens,
        "kl": kl,
        "quality": quality,
        "speed": speed,
        "streams": streams,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
    }
    job = follow(client, client.post("/v1/measure", body)["id"])
    if job["state"] != "succeeded":
        raise CommandFailed(describe(job))
    if as_json:
        write_json(job["result"])
    else:
        say("\n".join(lines(job["variant"], job["result"])))


def lines(variant: str, result: dict[str, Any]) -> list[str]:
    """The numbers, each with what it was taken over."""
    quality, speed = result["quality"], result["speed"]
    return [
        *(_quality(variant, quality) if quality is not None else ()),
        *(_speed(variant, speed, result["environment"]) if speed is not None else ()),
    ]


def _quality(variant: str, found: dict[str, Any]) -> list[str]:
    said = [
        f"{variant}: perplexity {found['perplexity']:.4f}{_interval(found['perplexity_interval'])}, "
        f"{found['num_tokens']:,} tokens in windows of {found['window']}, stride {found['stride']}"
    ]
    if found["kl_mean"] is not None:
        extent = "all tokens" if found["is_exact"] else f"the {found['top_k']} likeliest tokens, a lower bound"
        said += [
            f"base: perplexity {found['base_perplexity']:.4f}",
            f"KL(base || variant): mean {found['kl_mean']:.6f}{_interval(found['kl_mean_interval'])}, "
            f"p99 {found['kl_p99']:.6f} nats per token, over {extent}",
            f"KL(variant || base): mean {found['reverse_kl_mean']:.6f}, p99 {found['reverse_kl_p99']:.6f}",
            f"same first choice: {100 * found['top1_agreement']:.2f} %",
        ]
    return said


def _speed(variant: str, found: dict[str, Any], environment: dict[str, Any]) -> list[str]:
    said = [
        f"{variant} on {environment['device_name']}: {found['prompt_tokens']} prompt tokens and {found['new_tokens']} "
        "new ones per request, medians"
    ]
    for level in found["levels"]:
        times = (f"{name} {level[key]['p50']:.1f} ms" for name, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms")))
        said.append(f"streams {level['streams']}: {level['tokens_per_s']:.1f} tok/s, {', '.join(times)}")
    floor = "" if found["x_of_floor"] is None else f", {found['x_of_floor']:.1f} times the time to read them"
    said.append(
        f"weights {in_bytes(found['weight_bytes'])} in memory ({found['bits_per_weight']:.2f} bits each){floor}; "
        f"{in_bytes(found['kv_cache_bytes'])} of KV cache; at most {in_bytes(found['peak_bytes'])} in all; "
        f"{in_bytes(found['bytes_on_disk'])} on disk; loaded in {found['load_s']:.1f} s"
    )
    if found["neighbours"]:
        said.append("not alone: " + ", ".join(one["variant"] for one in found["neighbours"]) + " worked meanwhile")
    return said


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
