"""`slimserve export`: a variant's self-contained folder, fetched from the server and checked against its manifest."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client import Client
from app.cli.options import client_of
from app.cli.terminal import CommandFailed, in_bytes, say

_MANIFEST = "manifest.json"


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(export)


def export(
    ctx: typer.Context,
    variant: Annotated[str, typer.Argument(help="Id of a compressed variant, such as slimstory/int8.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not exist yet.")],
) -> None:
    """Copy a variant to a folder that other programs read: weights, config, tokenizer, model card, manifest.

    Every file's SHA-256 is compared with the manifest; the folder appears when all of it is there and right.
    """
    if folder.exists():
        raise CommandFailed(f"{folder} exists; name a folder that does not", exit_code=2)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        num_bytes = _fetch_all(client_of(ctx), variant, partial)
        partial.rename(folder)
    except OSError as error:
        raise CommandFailed(f"{folder} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{folder}: {in_bytes(num_bytes)}, every file as the manifest says")


def _fetch_all(client: Client, variant: str, folder: Path) -> int:
    """Fetch the manifest and what it lists. Returns the bytes of all files."""
    manifest = b"".join(client.download(f"/v1/export/{variant}"))
    (folder / _MANIFEST).write_bytes(manifest)
    files: dict[str, Any] = json.loads(manifest)["files"]
    for name, record in files.items():
        if Path(name).name != name:
            raise CommandFailed(f"the manifest of {variant} lists {name!r}, which is no file name")
        digest = hashlib.sha256()
        with (folder / name).open("wb") as stream:
            for chunk in client.download(f"/v1/export/{variant}", file=name):
                stream.write(chunk)
                digest.update(chunk)
        if digest.hexdigest() != record["sha256"]:
            raise CommandFailed(f"{name} is not what was written when {variant} was made (SHA-256 differs)")
    return len(manifest) + sum(int(record["size"]) for record in files.values())
