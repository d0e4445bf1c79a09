"""`slimserve quantize`: start a compression job and follow it."""

from typing import Annotated, Any

import typer

from app.cli.client import Client
from app.cli.jobs import describe, follow
from app.cli.options import client_of
from app.cli.terminal import CommandFailed, in_bytes, note, say

_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(quantize)


def quantize(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of a base; `slimserve load` registers one.")],
    method: Annotated[str, typer.Option(help="How to compress: int8 (8-bit weights, one scale per channel).")] = "int8",
    name: Annotated[
        str | None, typer.Option(help="Second part of the new variant's name.", show_default="the method")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Glob of module names to leave as they are; may be given more than once.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", show_default="the server's --device")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random in the job.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Make it again even if the same variant exists.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the job's id and return at once.")] = False,
    cancel_on_interrupt: Annotated[
        bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the job; else it goes on without you.")
    ] = False,
) -> None:
    """Compress a base into a new variant.

    The job runs in a process of its own on the server. Its result is verified in another fresh process (hashes, real
    tokens, distance to the original) before it appears in `slimserve list`.
    """
    client = client_of(ctx)
    body = {
        "model": model,
        "method": method,
        "name": name,
        "skip": skip or None,
        "device": device,
        "seed": seed,
        "force": force,
    }
    job = client.post("/v1/quantize", body)
    if detach:
        say(job["id"])
        return
    try:
        job = follow(client, job["id"])
    except KeyboardInterrupt:
        _interrupted(client, job["id"], cancel=cancel_on_interrupt)
        raise typer.Exit(_INTERRUPTED) from None
    say(outcome(client, job))


def outcome(client: Client, job: dict[str, Any]) -> str:
    """What a finished job has made, in one line. Raises CommandFailed if it made nothing."""
    if job["state"] != "succeeded":
        raise CommandFailed(describe(job))
    variant = client.get(f"/v1/variants/{job['variant']}")
    quality = variant.get("quality") or {}
    line = f"{variant['id']}: {in_bytes(variant['bytes_on_disk'])} on disk"
    if quality:
        line += (
            f", KL {quality['kl_mean']:.5f} nats per token, same first choice {100 * quality['top1_agreement']:.1f} %"
        )
    return line


def _interrupted(client: Client, job_id: str, *, cancel: bool) -> None:
    if cancel:
        note(describe(client.post(f"/v1/jobs/{job_id}/cancel", {})))
    else:
        note(
            f"the job goes on; follow it with `slimserve jobs {job_id} --follow`, "
            f"stop it with `slimserve jobs {job_id} --cancel`"
        )
