"""A page that is watched: nothing it does may fail unseen or leave the server it came from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page

# Seconds alone, minutes where other work shares two cores.
PATIENCE_MS = 240_000


@contextmanager
def watched_page(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """The page at `url`, open. context: of the browser's context, `color_scheme` for instance.

    Raises AssertionError at the end if a script failed, or if anything was asked of another host.
    """
    with browser.new_context(**context) as surroundings:
        page = surroundings.new_page()
        page.set_default_timeout(PATIENCE_MS)
        failures: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
        assert failures == []
        assert [one for one in asked if not one.startswith((f"{url}/", "blob:"))] == []
