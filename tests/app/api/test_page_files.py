"""The page's files, over ASGI: open to everybody, closed in themselves. What it does is tried in tests/browser."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest

from app.main import create_app
from app.page import FOLDER
from app.settings import Settings

SCRIPTS = sorted(FOLDER.glob("*.js"))


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key, of an application with keys that is not started."""
    transport = httpx.ASGITransport(app=create_app(Settings(api_keys=("secret",))))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_every_file_of_the_page_comes_without_a_key(http: httpx.AsyncClient) -> None:
    answers = [await http.get("/")]
    answers += [await http.get(f"/page/{path.name}") for path in FOLDER.iterdir() if path.name != "index.html"]

    assert {answer.status_code for answer in answers} == {200}
    assert all("script-src 'self'" in answer.headers["content-security-policy"] for answer in answers)
    assert (await http.head("/")).status_code == 200


async def test_data_of_the_page_needs_a_key(http: httpx.AsyncClient) -> None:
    path = re.compile(r"""["`](v1/\w+|metrics|models)\b""")
    asked = {found for script in SCRIPTS for found in path.findall(script.read_text("utf-8"))}

    assert {"v1/variants", "v1/jobs", "metrics"} <= asked
    assert {(await http.get(f"/{path}")).status_code for path in asked} == {401}


async def test_file_that_has_not_changed_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/page/main.js")
    again = await http.get("/page/main.js", headers={"if-none-match": first.headers["etag"]})

    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/%2e%2e/__init__.py", "/page/..%2f__init__.py", "/page/"])
async def test_nothing_else_is_served(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers={"authorization": "Bearer secret"})

    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_page_answers_only_to_names_of_this_server() -> None:
    transport = httpx.ASGITransport(app=create_app(Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://rebound.example") as client:
        assert (await client.get("/")).json()["error"]["code"] == "invalid_host"


def test_page_asks_no_other_host() -> None:
    addresses = {
        address for path in FOLDER.iterdir() for address in re.findall(r"https?://[\w./-]+", path.read_text("utf-8"))
    }

    assert addresses == {"http://www.w3.org/2000/svg"}


def test_every_import_of_a_script_is_there_and_used() -> None:
    for script in SCRIPTS:
        text = script.read_text("utf-8")
        for names, file in re.findall(r'^import \{ ([^}]+) \} from "\./(\w+\.js)";$', text, re.MULTILINE):
            exported = (FOLDER / file).read_text("utf-8")
            for name in names.split(", "):
                assert re.search(rf"^export (?:async )?(?:function\*?|class|const) {name}\b", exported, re.MULTILINE), (
                    name
                )
                assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{script.name} imports {name} and does not use it"


def test_no_script_makes_html_of_text() -> None:
    hands = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function")

    assert [path.name for path in SCRIPTS if hands.search(path.read_text("utf-8"))] == []
