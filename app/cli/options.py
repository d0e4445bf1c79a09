"""Options and arguments that several commands share."""

from pathlib import Path
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


def source_of(client: Client, model: str) -> str:
    """What the server is to be told: a folder by its whole path, since the server works in another one. A base that
    the server knows goes before a folder of its name.
    """
    is_path = model.startswith((".", "/", "~"))
    if not is_path and not Path(model).is_dir():
        return model
    known = {base["id"] for base in client.get("/v1/bases")["data"]}
    return model if model.partition("/")[0] in known else str(Path(model).expanduser().resolve())
