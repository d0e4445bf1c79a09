"""`slimserve demo`: the whole product on the embedded model, on a server of its own that it leaves running."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from app import embedded
from app.cli import server_process
from app.cli.bench import heldout_stories, table
from app.cli.chat import answer
from app.cli.client import Client
from app.cli.closed_loop import Workload
from app.cli.curl import curl_lines
from app.cli.invocation import own_command
from app.cli.jobs import follow
from app.cli.measure import measure
from app.cli.models import describe
from app.cli.quantize import outcome
from app.cli.terminal import CommandFailed, console, note, say, say_table

_HOST = "127.0.0.1"
_PORT = 8080
_PROMPT = "Tell me a story about a little fox who finds a red balloon."
_WORKLOAD = Workload(num_prompt_tokens=32, num_completion_tokens=64, num_runs=5)
_PERPLEXITY_TOKENS = 4096


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(demo)


def demo(
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Leave the server running at the end.")] = True,
    stop: Annotated[bool, typer.Option("--stop", help="Only stop the server that an earlier demo left.")] = False,
    run_dir: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of the demo's server: its state and log.")
    ] = Path(".run/demo"),
) -> None:
    """Show everything on a small model: serve, chat, quantize to int8, compare the two.

    Starts a server of its own (on port 8080, or a free one) with its own data, emptied at every start.
    """
    earlier = server_process.find(run_dir)
    if earlier is not None:
        note(f"stopping the demo server at {earlier.url}")
        earlier.stop()
    if stop:
        note("the demo server is stopped" if earlier else "no demo server runs")
        return
    shutil.rmtree(run_dir / "data", ignore_errors=True)
    port = server_process.free_port(_HOST, _PORT)
    note(f"starting a server on port {port}, log in {run_dir / 'server.log'}")
    server = server_process.start(run_dir, host=_HOST, port=port)
    try:
        models = show(Client(server.url))
    except BaseException:
        server.stop()
        raise
    if not keep:
        server.stop()
        return
    heading("The server is still running; try")
    for line in closing_lines(server, models[-1], run_dir):
        say(line)


def closing_lines(server: server_process.ServerProcess, model: str, run_dir: Path) -> list[str]:
    """What to try now, and how to stop the server; `make demo` leaves `slimserve` itself off the PATH."""
    command = own_command()
    return [
        *curl_lines(server.url, model),
        f"{command} --url {server.url} chat",
        f"or open {server.url} in a browser",
        "",
        f"Stop it with: make stop, or {command} demo --stop --run-dir {shlex.quote(str(run_dir))}",
        f"Process {server.pid}, log {run_dir / 'server.log'}",
    ]


def show(client: Client) -> list[str]:
    """Run every step against the server; the ids of the variants that it made, in order."""
    heading(f"1. Load the embedded model ({client.url})")
    original = client.post("/v1/load", {"model": embedded.NAME, "wait": True})
    say(describe(original))

    heading("2. Chat with it")
    say(f"> {_PROMPT}")
    options = {"model": original["id"], "max_tokens": 160, "temperature": 0.7, "top_p": 0.9, "seed": 7}
    answer(client, options, [{"role": "user", "content": _PROMPT}], stats=True)

    heading("3. Quantize it to int8")
    job = client.post("/v1/quantize", {"model": embedded.NAME, "method": "int8"})
    say(outcome(client, follow(client, job["id"])))

    heading("4. Load the int8 variant beside it")
    small = client.post("/v1/load", {"model": job["variant"], "wait": True})
    say(describe(small))

    heading("5. Compare")
    compare(client, [original, small])
    return [original["id"], small["id"]]


def compare(client: Client, variants: list[dict[str, Any]]) -> None:
    """Measure the variants and print the table. Raises CommandFailed if one has gone."""
    for one in variants:
        state = client.get(f"/v1/variants/{one['id']}")["state"]
        if state != "ready":
            raise CommandFailed(f"{one['id']} is {state}, so it cannot be measured")
    rows = measure(client, variants, heldout_stories(), _WORKLOAD, _PERPLEXITY_TOKENS)
    say_table(table(rows))
    say(
        f"medians of {_WORKLOAD.num_runs} requests of {_WORKLOAD.num_prompt_tokens} + "
        f"{_WORKLOAD.num_completion_tokens} tokens on {rows[0].device_name}; perplexity over "
        f"{rows[0].num_perplexity_tokens} held-out tokens; KL to the original in nats per token"
    )


def heading(text: str) -> None:
    """A step's title."""
    console().print(f"\n[bold]{text}[/bold]")
