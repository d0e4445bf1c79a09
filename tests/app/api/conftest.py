"""One real server with the echo model for all tests of the routes: starting one costs seconds."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from echo_process import running_echo

# The first test also waits for the server, whose worker imports torch.
FIRST_TEST_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that may have to start the server the time for it."""
    for item in items:
        if isinstance(item, pytest.Function) and "served" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(FIRST_TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server whose variant `echo/main` repeats the prompt, 2 ms per token; at most 8 requests at once."""
    # a request that names the embedded model is to be refused, and not to load it
    settings = {"SLIMSERVE_MAX_QUEUE": "8", "SLIMSERVE_AUTOLOAD": "false"}
    with running_echo(tmp_path_factory.mktemp("served"), settings) as (url, _):
        yield url


@pytest.fixture
async def http(served: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the served echo model."""
    async with httpx.AsyncClient(base_url=served, timeout=60, trust_env=False) as client:
        yield client
