"""`slimserve measure`: perplexity of a variant and its distance to its base, by a job on the server."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.jobs import describe, follow
from app.cli.options import JsonOption, client_of
from app.cli.terminal import CommandFailed, say, write_json


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
    as_json: JsonOption = False,
) -> None:
    """Measure how good a variant is: perplexity, and how far its predictions are from its base's.

    The first measurement on a text also reads the base; later ones find its numbers on disk. Intervals are 95 %.
    """
    client = client_of(ctx)
    body = {
        "model": model,
        "text": None if text is None else text.read_text("utf-8"),
        "window": window,
        "stride": stride,
        "max_tokens": max_tokens,
        "kl": kl,
    }
    job = follow(client, client.post("/v1/measure", body)["id"])
    if job["state"] != "succeeded":
        raise CommandFailed(describe(job))
    if as_json:
        write_json(job["result"])
    else:
        say("\n".join(lines(job["variant"], job["result"])))


def lines(variant: str, found: dict[str, Any]) -> list[str]:
    """The numbers, each with its interval and what it was taken over."""
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


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
