"""Puts the server together: settings, socket, application, uvicorn, and the models to load at the start."""

import asyncio
import socket
from collections.abc import Sequence

from app.cli.client import url_of
from app.cli.curl import curl_lines
from app.cli.http_server import DrainingServer, bind, configure, run
from app.cli.terminal import ADDRESS_NOT_AVAILABLE, DATA_DIR_IN_USE, CommandFailed, say
from app.core.server import Server
from app.errors import ApiError
from app.main import create_app
from app.settings import Settings
from app.store.database import DatabaseDamaged
from app.store.lock import DataDirInUse
from app.store.migrations import SchemaTooNew

_POLL_S = 0.25


def serve_until_stopped(settings: Settings, models: Sequence[str]) -> None:
    """Run the server with these models. Raises CommandFailed if it cannot start."""
    sock = _bind(settings)
    app = create_app(settings)

    def server_of_app() -> Server:
        server: Server = app.state.server
        return server

    def begin_drain() -> None:
        server_of_app().begin_drain()

    http = DrainingServer(
        configure(app, drain_timeout_s=settings.drain_timeout_s),
        on_listening=lambda: _greet(_url(sock), server_of_app().loader.name_of(models[0]), has_keys=settings.has_keys),
        on_drain=begin_drain,
    )

    async def load_models() -> None:
        server = server_of_app()
        server.load_at_start(models)
        while server.loader.unready():
            await asyncio.sleep(_POLL_S)
        say(f"ready: {', '.join(map(server.loader.name_of, models))}")

    try:
        run(http, sock, lambda: app.router.lifespan_context(app), load_models)
    except DataDirInUse as error:
        raise CommandFailed(str(error), exit_code=DATA_DIR_IN_USE) from error
    except (DatabaseDamaged, SchemaTooNew, ApiError, OSError) as error:
        raise CommandFailed(f"the server cannot start: {error}") from error


def _bind(settings: Settings) -> socket.socket:
    try:
        return bind(settings.host, settings.port)
    except OSError as error:
        raise CommandFailed(
            f"{settings.host}:{settings.port} cannot be used: {error.strerror}; choose another with --port or --host",
            exit_code=ADDRESS_NOT_AVAILABLE,
        ) from error


def _url(sock: socket.socket) -> str:
    address, port = sock.getsockname()[:2]
    return url_of(address, port)


def _greet(url: str, model: str, *, has_keys: bool) -> None:
    say(f"slimserve is at {url} (OpenAI base URL {url}/v1); Ctrl-C stops it. Try, in another terminal:")
    for line in curl_lines(url, model, has_keys=has_keys):
        say(f"  {line}")
