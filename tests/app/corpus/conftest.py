"""One server for the whole table: starting one costs seconds."""

from collections.abc import Iterator

import pytest
from corpus_server import SETTINGS, Server
from echo_process import running_echo


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with the echo model."""
    folder = tmp_path_factory.mktemp("corpus")
    models_dir = folder / "models"
    models_dir.mkdir()
    with running_echo(folder, SETTINGS, "--models-dir", str(models_dir)) as (url, process):
        yield Server(url, models_dir, process)
