"""`slimserve plan`: whether models fit side by side, and what would be unloaded for them."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from app.cli.models import DeviceOption, DtypeOption, KvCacheOption, MaxModelLenOption
from app.cli.options import JsonOption, client_of
from app.cli.terminal import CommandFailed, in_bytes, say, say_table, write_json


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(plan)


def plan(
    ctx: typer.Context,
    models: Annotated[list[str], typer.Argument(help="Variants or bases that are to be loaded side by side.")],
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    max_model_len: MaxModelLenOption = None,
    kv_cache_bytes: KvCacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether models fit, and which idle variants would be unloaded for them; nothing is loaded or unloaded.

    Exit status: 1 if they do not fit.
    """
    body = {
        "models": models,
        "dtype": dtype,
        "device": device,
        "max_model_len": max_model_len,
        "kv_cache_bytes": kv_cache_bytes,
    }
    found = client_of(ctx).post("/v1/models/plan", body)
    if as_json:
        write_json(found)
    else:
        say_table(_table(found))
        say(outcome(found))
    if not found["fits"]:
        raise CommandFailed(found["reason"])


def outcome(found: Mapping[str, Any]) -> str:
    """One line: the bytes, and whether it fits."""
    free = "what the worker finds" if found["free_bytes"] is None else in_bytes(max(found["free_bytes"], 0))
    line = f"{in_bytes(found['needed_bytes'])} needed, {free} free on {found['device']}: "
    if not found["fits"]:
        return line + "does not fit"
    return line + (f"fits after unloading {', '.join(found['evicts'])}" if found["evicts"] else "fits")


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", "state", "needs", "known"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "needs" else "left")
    for one in found["models"]:
        table.add_row(one["id"], one["state"], in_bytes(one["needed_bytes"]), one["source"])
    return table
