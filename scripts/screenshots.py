"""Takes the pictures of the page in docs/images, of a server that runs and has measured variants.

usage: screenshots.py CHROMIUM URL FOLDER
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

_SIZE = {"width": 1180, "height": 720}
_PATIENCE_MS = 120_000
# Traffic for the charts: how often the playground's prompt is sent.
_NUM_PROMPTS = 12


def main(chromium: str, url: str, folder: Path) -> None:
    """Write playground.png, live.png, compare.png, variants.png, and compare_dark.png."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=_SIZE, color_scheme="light")
        page.set_default_timeout(_PATIENCE_MS)
        page.goto(url)
        answer(page)
        take(page, folder / "playground.png")
        for _ in range(_NUM_PROMPTS):
            send(page)
        for view in ("live", "compare", "variants"):
            page.goto(f"{url}/#{view}")
            page.locator(f"#{view} .card").first.wait_for()
            take(page, folder / f"{view}.png")
        page.emulate_media(color_scheme="dark")
        page.goto(f"{url}/#compare")
        take(page, folder / "compare_dark.png")
        browser.close()


def answer(page: Page) -> None:
    """Have the variants that are loaded answer the prompt that the playground begins with."""
    page.get_by_role("link", name="Playground").click()
    page.locator("#playground input[type=checkbox]").first.wait_for()
    page.get_by_label("Tokens at most").fill("64")
    send(page)


def send(page: Page) -> None:
    """Send, and wait for the end of all answers."""
    page.get_by_role("button", name="Send").click()
    page.locator("#playground button:not([disabled])", has_text="Ask the original").wait_for()


def take(page: Page, path: Path) -> None:
    """One picture, of the whole page."""
    # two rounds of the page's questions: what it shows first may be what it knew before
    page.wait_for_timeout(4500)
    page.screenshot(path=path, full_page=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].rstrip("/"), Path(sys.argv[3]))
