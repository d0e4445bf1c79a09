"""Puts the server together: application, socket, uvicorn, and the models to load at the start."""

import logging
from collections.abc import Sequence

from app.cli.curl import curl_lines
from app.cli.http_server import DrainingServer, bind, configure, run
from app.cli.serve import ADDRESS_NOT_AVAILABLE, DATA_DIR_IN_USE
from app.cli.terminal import CommandFailed, say
from app.errors import ApiError
from app.main import create_app
from app.settings import Settings
from app.store.lock import DataDirInUse

logger = logging.getLogger(__name__)


def serve_until_stopped(settings: Settings, models: Sequence[str]) -> None:
    """Run the server with these models. Raises CommandFailed if it cannot start."""
    try:
        sock = bind(settings.host, settings.port)
    except OSError as error:
        raise CommandFailed(
            f"{settings.host}:{settings.port} cannot be used: {error.strerror}; choose another with --port or --host",
            exit_code=ADDRESS_NOT_AVAILABLE,
        ) from error
    address, port = sock.getsockname()[:2]
    url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
