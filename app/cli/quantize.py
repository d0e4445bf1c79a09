"""`slimserve quantize`: start a compression job and follow it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import Client
from app.cli.jobs import describe, follow
from app.cli.options import client_of, is_known, text_of, whole_path
from app.cli.terminal import CommandFailed, console, in_bytes, note, say

_INTERRUPTED = 130
_DEFAULT_SHAPE = {"num_samples": 32, "sequence_length": 512}


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(quantize)


def quantize(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A base, or a local model folder or hub id to make one of.")],
    method: Annotated[str, typer.Option(help="How to compress; see above.")] = "int8",
    bits: Annotated[
        float | None,
        typer.Option(help="2, 3, 4 or 8, for rtn, gptq and awq; an average for auto.", show_default="the method's"),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Columns that share a scale; -1 is a whole row.", show_default="the method's"),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Without or with zero points.", show_default="the method's"),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Any other option as NAME=VALUE, such as damp_percent=0.05; repeatable.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="File format: gptq, awq, pack-quantized, ...", show_default="the method's")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text file to observe activations on.", show_default="built-in stories"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Windows of the text.")] = 32,
    sequence_length: Annotated[int, typer.Option(min=16, help="Tokens per window.")] = 512,
    quantize_head: Annotated[bool, typer.Option("--quantize-head", help="Compress the output head too.")] = False,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Nats per token to the base above which the variant is bad.", show_default="by its bits"),
    ] = None,
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

    Methods: rtn (round to nearest; seconds), int8 (8 bits, one scale per channel), nf4 and fp4 (4-bit floats of
    bitsandbytes), llm_int8, gptq and awq (look at a text; the best at 4 bits and less), smoothquant (8-bit weights and
    activations), fp8, auto (gptq with the bits of each linear chosen by measured sensitivity: --bits 4.25 is the
    average, scales included; --option max_bytes=N a size). A name may carry options: gptq-int4-g128 is --method gptq
    --bits 4 --group-size 128. The text should look like what the model will read: the built-in stories suit small
    English models only.

    The job runs in a process of its own on the server. Its result is verified in another fresh process (hashes, real
    tokens, distance to the original) before it appears in `slimserve list`.
    """
    client = client_of(ctx)
    body = {
        "model": _base_of(client, model),
        "method": method,
        "options": _options(option or [], **_bits(method, bits), group_size=group_size, symmetric=symmetric),
        "layout": layout,
        "calibration": _calibration(calibration, samples, sequence_length),
        "quantize_head": quantize_head,
        "max_kl": max_kl,
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


def _base_of(client: Client, model: str) -> str:
    """The name of a model that the server knows; a folder or a hub id is registered first, without being loaded."""
    if is_known(client, model):
        return model
    source = whole_path(model)
    if "/" not in source:
        return model
    with console(stderr=True).status(f"registering {model}"):
        return str(client.post("/v1/bases", {"model": source, "wait": True})["id"])


def _bits(method: str, bits: float | None) -> dict[str, float | None]:
    """auto takes an average, other methods a width."""
    if method == "auto":
        return {"bits": bits}
    return {"num_bits": int(bits) if bits is not None and bits.is_integer() else bits}


def _options(pairs: list[str], **named: float | bool | None) -> dict[str, Any]:
    options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator:
            raise CommandFailed(f"--option is {pair!r}; it must look like damp_percent=0.05", exit_code=2)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def _calibration(file: Path | None, samples: int, sequence_length: int) -> dict[str, Any] | None:
    shape = {"num_samples": samples, "sequence_length": sequence_length}
    if file is not None:
        return {"text": text_of(file), **shape}
    # Not sent where nothing was asked for: methods that look at no text refuse it.
    return shape if shape != _DEFAULT_SHAPE else None


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
