"""`slimserve bench`: measure served variants and put their numbers side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from app import embedded
from app.cli.client import Client
from app.cli.closed_loop import Workload
from app.cli.measure import Row, measure
from app.cli.options import JsonOption, client_of, text_of
from app.cli.terminal import CommandFailed, console, in_bytes, in_digits, in_ms, say_table, write_json


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(bench)


def bench(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Variants; a base name means all of its ready ones.", show_default="every ready variant"),
    ] = None,
    streams: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Clients at once; give it once per level.", show_default="1"),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Timed requests of each client per variant, after one that warms up.")
    ] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of each prompt, in tokens.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Length of each answer, in tokens.")] = 64,
    perplexity_tokens: Annotated[
        int, typer.Option(min=0, help="Length of the text that perplexity is taken over, in tokens; 0 leaves it out.")
    ] = 4096,
    text: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="UTF-8 text for prompts and perplexity.", show_default="a story text"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure variants: bytes, time to first token, time per token, memory, perplexity.

    Times are medians as clients of the server see them (--url names it), one request at a time unless --streams says
    otherwise; tokens per second are those of all streams together. KL is the distance to the uncompressed model, in
    nats per token, measured when the variant was made. Perplexities compare within a table only: they depend on
    the text and on how the model cuts it into tokens.
    """
    client = client_of(ctx)
    texts = [text_of(text)] if text else heldout_stories()
    workload = Workload(
        num_prompt_tokens=prompt_tokens,
        num_completion_tokens=tokens,
        num_runs=runs,
        streams=tuple(sorted(set(streams or [1]))),
    )
    chosen = select(client, models or [])
    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=1.0)
        rows = measure(
            client, chosen, texts, workload, perplexity_tokens, lambda share: bar.update(task, completed=share)
        )
    if as_json:
        write_json([asdict(row) for row in rows])
    else:
        say_table(table(rows))


def heldout_stories() -> list[str]:
    """The embedded texts that the embedded model was not trained on."""
    return embedded.stories(embedded.heldout_text())


def select(client: Client, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The ready variants of these names, each once, in this order. Raises CommandFailed for a name without one."""
    ready = [one for one in client.get("/v1/variants")["data"] if one["state"] == "ready"]
    chosen: dict[str, Mapping[str, Any]] = {one["id"]: one for one in ready} if not names else {}
    for name in names:
        found = [one for one in ready if name in (one["id"], one["base"])]
        if not found:
            raise CommandFailed(
                f"{name!r} is no ready variant; see `slimserve ps`, load it with `slimserve load {name}`"
            )
        chosen.update({one["id"]: one for one in found})
    if not chosen:
        raise CommandFailed("no variant is ready; load one with `slimserve load MODEL`")
    return list(chosen.values())


def table(rows: Iterable[Row]) -> Table:
    """The rows as a table for people."""
    built = Table(box=None, pad_edge=False)
    built.add_column("variant", no_wrap=True)
    for heading in ("disk", "weights", "memory", "streams", "TTFT", "TPOT", "tok/s", "perplexity", "KL"):
        built.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        built.add_row(
            row.variant,
            in_bytes(row.bytes_on_disk),
            in_bytes(row.weight_bytes),
            in_bytes(row.process_bytes),
            str(row.streams),
            in_ms(row.ttft_s),
            in_ms(row.tpot_s),
            in_digits(row.tokens_per_s, 1),
            in_digits(row.perplexity, 3),
            in_digits(row.kl_mean, 5),
        )
    return built
