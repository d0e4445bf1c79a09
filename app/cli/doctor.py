"""`slimserve doctor` and `slimserve version`: what is installed here, and whether the server could start."""

import errno
import json
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer

from app.cli.client import Client, url_of
from app.cli.options import client_of
from app.cli.serve import settings_from
from app.cli.terminal import CommandFailed, in_bytes, say
from app.settings import Settings

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn")
_PROBE_TIMEOUT_S = 120
_LEAST_FREE_DISK_BYTES = 2**30
# Runs in a child: this process must stay free of torch.
_DEVICE_PROBE = """
import json, torch
devices = [{"name": "cpu", "detail": f"{torch.get_num_threads()} threads", "bytes": None}]
for index in range(torch.cuda.device_count()):
    properties = torch.cuda.get_device_properties(index)
    devices.append({"name": f"cuda:{index}", "detail": properties.name, "bytes": properties.total_memory})
print(json.dumps(devices))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    is_good: bool
    text: str


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(doctor)
    app.command("version")(show_version)


def doctor(
    ctx: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder to look at.", show_default="SLIMSERVE_DATA_DIR or the user's own")
    ] = None,
) -> None:
    """Check the installation: versions, devices, data folder, port.

    Needs no server; exits with 1 if something is wrong.
    """
    settings = settings_from({} if data_dir is None else {"data_dir": data_dir})
    findings = [*_versions(), *_devices(), _memory(), *_data_dir(settings.data_dir), _port(settings)]
    for finding in findings:
        say(f"{'ok  ' if finding.is_good else 'BAD '} {finding.text}")
    if not all(finding.is_good for finding in findings):
        raise CommandFailed("something is wrong; see the lines that start with BAD")


def show_version(ctx: typer.Context) -> None:
    """Print the version of this command, and of the server if one answers."""
    say(f"slimserve {version('slimserve')}")
    client = client_of(ctx)
    if client.is_ready():
        say(f"server    {client.get('/version')['version']} at {client.url}")


def _versions() -> Iterator[Finding]:
    is_new_enough = sys.version_info >= (3, 11)
    yield Finding(is_good=is_new_enough, text=f"Python {platform.python_version()} (3.11 or newer is needed)")
    for package in _PACKAGES:
        try:
            yield Finding(is_good=True, text=f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(is_good=False, text=f"{package} is not installed; run make setup")


def _devices() -> Iterator[Finding]:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _DEVICE_PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        detail = error.stderr if isinstance(error.stderr, str) else str(error)
        yield Finding(is_good=False, text=f"torch cannot list the devices: {detail.strip().splitlines()[-1]}")
        return
    for device in json.loads(probe.stdout):
        size = f", {in_bytes(device['bytes'])}" if device["bytes"] else ""
        yield Finding(is_good=True, text=f"device {device['name']}: {device['detail']}{size}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    return Finding(is_good=True, text=f"memory {in_bytes(memory.available)} free of {in_bytes(memory.total)}")


def _data_dir(folder: Path) -> Iterator[Finding]:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield Finding(is_good=False, text=f"data folder {folder}: {existing} is a file")
        return
    free_bytes = psutil.disk_usage(str(existing)).free
    yield Finding(is_good=_is_writable(existing), text=f"data folder {folder} can be written")
    yield Finding(
        is_good=free_bytes >= _LEAST_FREE_DISK_BYTES, text=f"disk {in_bytes(free_bytes)} free (1.1 GB is the least)"
    )


def _is_writable(folder: Path) -> bool:
    probe = folder / ".slimserve-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _port(settings: Settings) -> Finding:
    address = f"{settings.host}:{settings.port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and _is_ours(url_of(settings.host, settings.port)):
                return Finding(is_good=True, text=f"{address} is used by a slimserve server")
            return Finding(is_good=False, text=f"{address} cannot be used: {error.strerror}")
    return Finding(is_good=True, text=f"{address} is free")


def _is_ours(url: str) -> bool:
    client = Client(url)
    try:
        return client.is_slimserve()
    finally:
        client.close()
