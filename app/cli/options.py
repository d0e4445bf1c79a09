"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import Client
from app.cli.terminal import CommandFailed

DEFAULT_URL = "http://127.0.0.1:8080"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs in place of a table.")]


def client_of(ctx: typer.Context) -> Client:
    """The client that the global options made."""
    client = ctx.obj
    assert isinstance(client, Client)
    return client


def whole_path(model: str) -> str:
    """A folder by its whole path, since the server works in another one; any other name as it is."""
    is_folder = model.startswith((".", "/", "~")) or Path(model).is_dir()
    return str(Path(model).expanduser().resolve()) if is_folder else model


def is_known(client: Client, model: str) -> bool:
    """True for a base that the server knows, and its variants: they go before a folder of that name."""
    return model.partition("/")[0] in {base["id"] for base in client.get("/v1/bases")["data"]}


def source_of(client: Client, model: str) -> str:
    """What the server is to be told."""
    path = whole_path(model)
    return model if path != model and is_known(client, model) else path


def text_of(file: Path) -> str:
    """What a text file of this machine says. Raises CommandFailed, with the path and why, for one that is none."""
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{file} is no text in UTF-8: byte {error.start} is none of it") from error
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from error
