"""`slimserve load`, `unload`, `list`, `ps` and `rm`: which variants there are, and which of them are served."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from app.cli.options import JsonOption, client_of, source_of
from app.cli.terminal import console, in_bytes, in_digits, note, say, say_table, write_json

ModelArgument = Annotated[
    str, typer.Argument(help="A variant (name/int8), a base name, a local model folder, or an id on the hub.")
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Number type of what is not compressed: auto, fp32 (exact), bf16, fp16.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default="the server's --device")
]
MaxModelLenOption = Annotated[
    int | None,
    typer.Option("--max-model-len", min=1, help="Longest sequence, in tokens.", show_default="the model's own"),
]
KvCacheOption = Annotated[
    int | None,
    typer.Option("--kv-cache-bytes", min=1, help="Memory for keys and values.", show_default="a share of what is free"),
]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(load)
    app.command()(unload)
    app.command("list")(list_variants)
    app.command("ps")(list_served)
    app.command("rm")(remove)


def load(
    ctx: typer.Context,
    model: ModelArgument,
    name: Annotated[str | None, typer.Option(help="Name of a new base.", show_default="from the model")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default="main")] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    max_model_len: MaxModelLenOption = None,
    kv_cache_bytes: KvCacheOption = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Keep it until it is unloaded by name.", show_default="no pin")
    ] = None,
    idle_unload_s: Annotated[
        float | None,
        typer.Option(
            min=0, help="Unload it after this time without requests; 0 is never.", show_default="the server's"
        ),
    ] = None,
    evict: Annotated[
        bool | None,
        typer.Option(
            "--evict/--no-evict",
            help="Unload idle variants if it does not fit else.",
            show_default="yes if the server autoloads",
        ),
    ] = None,
    tool_parser: Annotated[
        str | None,
        typer.Option(
            help="What reads tool calls: auto, none, hermes, qwen3_coder, llama3, mistral, json.",
            show_default="by the chat template",
        ),
    ] = None,
    reasoning_parser: Annotated[
        str | None,
        typer.Option(help="What reads thinking: auto, none, think, mistral.", show_default="by the chat template"),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once; `slimserve ps` shows the state.")] = False,
) -> None:
    """Load a model into a worker process of its own.

    A new model is registered as a base first. Its memory need is estimated before anything is read, or known from an
    earlier load; if it does not fit, idle variants are unloaded where that helps, else nothing is loaded.
    """
    client = client_of(ctx)
    body = {
        "model": source_of(client, model),
        "name": name,
        "revision": revision,
        "dtype": dtype,
        "device": device,
        "max_model_len": max_model_len,
        "kv_cache_bytes": kv_cache_bytes,
        "pin": pin,
        "idle_unload_s": idle_unload_s,
        "evict": evict,
        "tool_parser": tool_parser,
        "reasoning_parser": reasoning_parser,
        "wait": not no_wait,
    }
    with console(stderr=True).status(f"loading {model}"):
        variant = client.post("/v1/load", body)
    say(describe(variant))


def unload(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The variant to stop serving.")],
    force: Annotated[bool, typer.Option("--force", help="Cut running requests off; else they may finish.")] = False,
) -> None:
    """Stop the worker of a variant; returns when its memory is free again."""
    with console(stderr=True).status(f"unloading {model}"):
        variant = client_of(ctx).post("/v1/unload", {"model": model, "wait": True, "force": force})
    # "registered" is the state that it is back in, and tells nobody that something was done
    say(f"{variant['id']}: unloaded" if variant["state"] == "registered" else describe(variant))


def list_variants(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List every variant, served or not."""
    variants = client_of(ctx).get("/v1/variants")["data"]
    _show(variants, as_json=as_json, empty="no variants yet; make one with `slimserve load MODEL`")


def list_served(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the variants that have a worker, with its memory and its load."""
    variants = [one for one in client_of(ctx).get("/v1/variants")["data"] if one["state"] != "registered"]
    _show(variants, as_json=as_json, empty="nothing is served; load a variant with `slimserve load MODEL`")


def remove(
    ctx: typer.Context,
    variant: Annotated[str, typer.Argument(help="The variant to delete, by its whole name: base/method.")],
    force: Annotated[bool, typer.Option("--force", help="Delete it even while it is served.")] = False,
) -> None:
    """Delete a variant, its files and its reports. The files of a local base stay where they are."""
    path = f"/v1/variants/{quote(variant)}"
    client_of(ctx).delete(f"{path}?force=true" if force else path)
    say(f"{variant}: deleted")


def describe(variant: Mapping[str, Any]) -> str:
    """One line on one variant: state, device, lane and measured memory."""
    line = f"{variant['id']}: {variant['state']}"
    if variant["state"] == "ready":
        line += (
            f" on {variant['device_name']}, {variant['lane']} lane, {in_bytes(variant['weight_bytes'])} of weights, "
            f"{in_bytes(variant['process_bytes'])} in all, loaded in {variant['load_s']:.1f} s"
        )
    return line + (f" ({variant['reason']})" if variant.get("reason") else "")


def _show(variants: Iterable[Mapping[str, Any]], *, as_json: bool, empty: str) -> None:
    rows = list(variants)
    if as_json:
        write_json(rows)
    elif rows:
        say_table(_table(rows))
    else:
        note(empty)


def _table(variants: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", "state", "format", "device"):
        table.add_column(heading, no_wrap=True)
    for heading in ("disk", "weights", "process", "KL", "running", "waiting"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in variants:
        quality = one.get("quality") or {}
        table.add_row(
            one["id"],
            one["state"],
            one["format"] or "-",
            one["device"] or "-",
            in_bytes(one["bytes_on_disk"] or None),
            in_bytes(one["weight_bytes"]),
            in_bytes(one["process_bytes"]),
            in_digits(quality.get("kl_mean"), 5),
            str(one["running"]),
            str(one["waiting"]),
        )
    return table
