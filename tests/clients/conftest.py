"""One server with the embedded model for the clients, started as a user starts it, by an interpreter of its own.

The clients' environments do not have slimserve: `make clients` names its interpreter in SLIMSERVE_PYTHON and their
folder in SLIMSERVE_CLIENTS. A client that is not installed skips with the reason.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cli_server import CliServer, running_server

# Seconds alone, minutes where other work shares two cores.
TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time that its client needs to be imported, and let the clients' own warnings pass."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    """A running server that serves the embedded model, ready."""
    python = os.environ.get("SLIMSERVE_PYTHON", sys.executable)
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        # a proxy of the environment cannot reach this machine's own loopback
        patch.setenv("NO_PROXY", "*")
        # so that a variant that is not loaded is answered with 503 at once, which clients then have to follow
        with running_server(folder, python=python, SLIMSERVE_AUTOLOAD_WAIT_S="0") as server:
            yield server


@pytest.fixture(scope="session")
def base_url(server: CliServer) -> str:
    """What clients call the base URL."""
    return f"{server.url}/v1"
