"""A real server, started through the command line, for the tests that need one as a user has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_server import CliServer, running_server


@pytest.fixture
def cli_server(tmp_path: Path) -> Iterator[CliServer]:
    """A running server that serves the embedded model, ready."""
    with running_server(tmp_path) as server:
        yield server
