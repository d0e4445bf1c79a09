"""`slimserve serve`: the server itself, in this process."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app import embedded
from app.cli.terminal import BAD_SETTINGS, CommandFailed
from app.log import configure_logging
from app.settings import ENV_PREFIX, Settings, UnknownSetting


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(serve)


def _option(name: str, *flags: str) -> Any:
    """An option whose help and default are those of the setting."""
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    return typer.Option(
        *flags,
        help=f"{field.description} Also {ENV_PREFIX}{name.upper()}.",
        show_default="none" if default in (None, ()) else str(default),
    )


def serve(
    load: Annotated[
        list[str] | None,
        typer.Option(help="Model to load at the start; may be given more than once.", show_default="the embedded one"),
    ] = None,
    host: Annotated[str | None, _option("host")] = None,
    port: Annotated[int | None, _option("port")] = None,
    data_dir: Annotated[Path | None, _option("data_dir")] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder below which local models may be loaded; may be given more than once. "
            "Also SLIMSERVE_MODELS_DIRS, separated by ':'.",
            show_default="none",
        ),
    ] = None,
    device: Annotated[str | None, _option("device")] = None,
    num_threads: Annotated[int | None, _option("num_threads")] = None,
    auto_measure: Annotated[str | None, _option("auto_measure")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Allow a public address without keys.")
    ] = False,
) -> None:
    """Run the server. Without options it serves the embedded model on 127.0.0.1:8080, ready in seconds.

    Every setting can also be given by the environment, as SLIMSERVE_ and its name in capitals; docs/settings.md lists
    them all. The first Ctrl-C or SIGTERM lets running requests finish, the second stops at once.

    Exit status: 2 bad settings, 3 data folder in use, 4 address not available.
    """
    overrides = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "models_dirs": tuple(models_dir) if models_dir else None,
        "device": device,
        "num_threads": num_threads,
        "auto_measure": auto_measure,
        "log_level": log_level,
        "insecure_no_auth": insecure_no_auth or None,
    }
    settings = settings_from({name: value for name, value in overrides.items() if value is not None})
    refuse_open_door(settings)
    configure_logging(settings.log_level)
    # Imported here: FastAPI and uvicorn would cost every other command half a second.
    from app.cli.composition import serve_until_stopped

    serve_until_stopped(settings, load or [embedded.NAME])


def settings_from(overrides: Mapping[str, Any]) -> Settings:
    """Settings from the environment, and from options, which win. Raises CommandFailed that names what is wrong."""
    try:
        return Settings(**overrides)
    except UnknownSetting as error:
        raise CommandFailed(str(error), exit_code=BAD_SETTINGS) from error
    except ValidationError as error:
        lines = [_complaint(str(one["loc"][0]), one["input"], one["msg"]) for one in error.errors()]
        raise CommandFailed("\n".join(lines), exit_code=BAD_SETTINGS) from error


def _complaint(name: str, value: object, rule: str) -> str:
    line = f"{ENV_PREFIX}{name.upper()} or --{name.replace('_', '-')} is {value!r}: {rule}"
    if str(value).startswith("tcp://"):
        line += (
            " (Kubernetes sets this variable for a Service that is named slimserve; "
            "put enableServiceLinks: false into the pod's spec)"
        )
    return line


def refuse_open_door(settings: Settings) -> None:
    """Raise CommandFailed if anyone on the network could use the server without a key."""
    if settings.has_keys or settings.insecure_no_auth or is_loopback(settings.host):
        return
    raise CommandFailed(
        f"{settings.host} can be reached from other machines, and no key is set; "
        f"set {ENV_PREFIX}API_KEYS=<key>[,<key>], listen on 127.0.0.1, "
        "or say --insecure-no-auth if something in front of the server checks who calls",
        exit_code=BAD_SETTINGS,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost counts as public."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
