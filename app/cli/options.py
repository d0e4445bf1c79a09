"""Options and arguments that several commands share."""

from typing import Annotated

import typer

from app.cli.client import Client

DEFAULT_URL = "http://127.0.0.1:8080"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs in place of a table.")]


def client_of(ctx: typer.Context) -> Client:
    """The client that the global options made."""
    client = ctx.obj
    assert isinstance(client, Client)
    return client
