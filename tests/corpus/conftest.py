"""One server for the whole table: starting one costs seconds."""

from collections.abc import Iterator

import pytest
from corpus_server import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the echo model."""
    with running_server(tmp_path_factory.mktemp("corpus")) as server:
        yield server
