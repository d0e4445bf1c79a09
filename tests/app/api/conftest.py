"""One real server with the echo model for all tests of the routes: starting one costs seconds."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from app_servers import listening
from echo_process import running_echo
from fastapi import FastAPI
from replay_server import replaying

# The first test also waits for the server, whose worker imports torch.
FIRST_TEST_TIMEOUT_S = 600
TEMPLATES = Path(__file__).parents[1] / "core" / "tools" / "templates"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that may have to start the server the time for it."""
    for item in items:
        if isinstance(item, pytest.Function) and "served" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(FIRST_TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server whose variant `echo/main` repeats the prompt, 2 ms per token."""
    # a request that names the embedded model is to be refused, and not to load it
    settings = {"SLIMSERVE_AUTOLOAD": "false"}
    with running_echo(tmp_path_factory.mktemp("served"), settings) as (url, _):
        yield url


@pytest.fixture
async def http(served: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the served echo model."""
    async with httpx.AsyncClient(base_url=served, timeout=300, trust_env=False) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replay_app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """A server that says what its prompts ask it to, behind a template of every family, and a client."""
    names = ("hermes", "qwen3_coder", "llama3", "mistral", "text_arguments", "plain")
    templates = {name: (TEMPLATES / f"{name}.jinja").read_text("utf-8") for name in names}
    async with replaying(tmp_path_factory.mktemp("replay"), templates) as (app, client):
        yield app, client


@pytest.fixture(scope="module")
def replay(replay_app: tuple[FastAPI, httpx.AsyncClient]) -> httpx.AsyncClient:
    """A client of that server, over ASGI."""
    return replay_app[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replay_url(replay_app: tuple[FastAPI, httpx.AsyncClient]) -> AsyncIterator[str]:
    """The URL of that server, on a real socket."""
    async with listening(replay_app[0]) as url:
        yield url
