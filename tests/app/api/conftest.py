"""One real server with the echo model for all tests of the routes: starting one costs seconds."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "SLIMSERVE_ENABLE_ECHO": "1",
    "SLIMSERVE_ECHO_ITL_S": "0.002",
    "SLIMSERVE_MAX_QUEUE": "8",
    # a request that names the embedded model is to be refused, and not to load it
    "SLIMSERVE_AUTOLOAD": "false",
}

# The first test also waits for the server, whose worker imports torch.
FIRST_TEST_TIMEOUT_S = 600
# Draining takes a moment; a machine that is busy with other tests takes far longer.
STOP_TIMEOUT_S = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that may have to start the server the time for it."""
    for item in items:
        if isinstance(item, pytest.Function) and "served" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(FIRST_TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server whose variant `echo/main` repeats the prompt, 2 ms per token; at most 8 requests at once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIMSERVE_")}
    folder = tmp_path_factory.mktemp("served")
    options = ["--port", "0", "--data-dir", str(folder / "data"), "--load", "echo/main", "--num-threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", *options],
            cwd=ROOT,
            env={**environment, **SETTINGS, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield _url_when_ready(process, folder / "log")
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()


def _url_when_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    url = ""
    assert process.stdout is not None
    for line in process.stdout:
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        url = url or (match[0] if match else "")
        if line.startswith("ready"):
            return url
    raise AssertionError(f"the server has ended before it was ready: {log.read_text()}")


@pytest.fixture
async def http(served: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the served echo model."""
    async with httpx.AsyncClient(base_url=served, timeout=60, trust_env=False) as client:
        yield client
