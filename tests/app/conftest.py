"""What the tests of the front end share: settings in a temporary folder, and servers with the echo model."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from app_servers import echo_settings, listening, running_app, running_server

from app.core.load_request import LoadRequest
from app.core.server import Server
from app.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A server of its own, with the echo model at 2 ms per token."""
    return echo_settings(tmp_path / "data")


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """A started server; nothing is loaded."""
    async with running_server(settings) as server:
        yield server


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client over ASGI; nothing is loaded."""
    async with running_app(settings) as (_, client):
        yield client


@pytest.fixture
async def echo_client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client over ASGI; `echo` is ready."""
    async with running_app(settings) as (app, client):
        await app.state.server.loader.load(LoadRequest(model="echo"), wait=True)
        yield client


@pytest.fixture
async def echo_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of a server on a real socket; `echo` is ready."""
    async with running_app(settings) as (app, _):
        await app.state.server.loader.load(LoadRequest(model="echo"), wait=True)
        async with listening(app) as url:
            yield url
