"""A real Chromium in front of a real server. SLIMSERVE_TEST_CHROMIUM names the browser; `make browser` sets it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.append(str(Path(__file__).parent.parent / "e2e"))
from cli_server import CliServer, running_server
from watched import PATIENCE_MS, watched_page

# Chromium's own errands would look for its maker's hosts; its sandbox refuses to work for root.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("SLIMSERVE_TEST_CHROMIUM")
    if not path:
        pytest.skip("SLIMSERVE_TEST_CHROMIUM names no Chromium; `make browser` finds one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS, timeout=PATIENCE_MS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    """One server for all tests, so that variants and reports need to be made once."""
    with running_server(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: CliServer) -> Iterator[Page]:
    """The page, open; the test fails if a script of it did, or if anything was asked of another host."""
    with watched_page(browser, server.url) as found:
        yield found
