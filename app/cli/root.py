"""The `slimserve` command itself: its global options, and the list of its commands."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli import bench, chat, compare, demo, doctor, export, jobs, measure_command, models, plan, quantize, serve
from app.cli.client import Client
from app.cli.options import DEFAULT_URL
from app.cli.terminal import CommandFailed, note

# Global options are taken wherever they stand, so that both `slimserve --url U list` and `slimserve list --url U` work.
_GLOBAL_OPTIONS = ("--url", "--api-key")

_HELP = """
Compress large language models, serve every variant side by side, and measure each.

Start here: **slimserve demo** shows everything on a small model.

Or step by step, the server in one terminal and the rest in another:

- slimserve serve --models-dir /models
- slimserve load /models/qwen3-0.6b
- slimserve quantize qwen3-0.6b
- slimserve load qwen3-0.6b/int8
- slimserve measure qwen3-0.6b/int8
- slimserve compare qwen3-0.6b
- slimserve recommend qwen3-0.6b --max-kl 0.05
- slimserve bench qwen3-0.6b
- slimserve chat --model qwen3-0.6b/int8

Every command but serve, demo and doctor talks to a running server over its HTTP API.
"""


class Commands(TyperGroup):
    """Prints a CommandFailed as one sentence and exits with its status; finds global options after the command too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the global options to the front, then parse as usual."""
        return super().parse_args(ctx, hoist(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CommandFailed as failure:
            note(f"Error: {failure.message}")
            raise typer.Exit(failure.exit_code) from failure


def hoist(args: Sequence[str]) -> list[str]:
    """The arguments with --url and --api-key, and their values, first; nothing after `--` is touched."""
    end = args.index("--") if "--" in args else len(args)
    first: list[str] = []
    rest: list[str] = []
    index = 0
    while index < end:
        target = first if args[index].split("=", 1)[0] in _GLOBAL_OPTIONS else rest
        length = 2 if args[index] in _GLOBAL_OPTIONS else 1
        target.extend(args[index : min(index + length, end)])
        index += length
    return [*first, *rest, *args[end:]]


app = typer.Typer(
    name="slimserve",
    cls=Commands,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def connect(
    ctx: typer.Context,
    url: Annotated[str, typer.Option(envvar="SLIMSERVE_URL", help="Base URL of the server.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SLIMSERVE_API_KEY", help="Key of the server, if it asks for one.", show_default="none"),
    ] = None,
) -> None:
    """Keep a client for the command that follows."""
    client = Client(url, api_key)
    ctx.obj = client
    ctx.call_on_close(client.close)


for group in (serve, models, plan, quantize, measure_command, export, jobs, chat, bench, compare, demo, doctor):
    group.register(app)
