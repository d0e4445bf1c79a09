"""Load, unload and watch models as llama.cpp's router has it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, listening, running_app

from app.api.model_router import changes
from app.settings import Settings

pytestmark = pytest.mark.timeout(2 * LOAD_TIMEOUT_S)


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    async for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def status_of(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    models = (await http.get("/models")).json()["data"]
    found: dict[str, Any] = next(item["status"] for item in models if item["id"] == model)
    return found


async def test_buttons_load_and_unload_and_the_stream_tells(echo_url: str) -> None:
    async with (
        httpx.AsyncClient(base_url=echo_url, timeout=LOAD_TIMEOUT_S, trust_env=False) as http,
        http.stream("GET", "/models/sse") as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer.aiter_lines())

        async def seen(model: str, status: str) -> dict[str, Any]:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                async for event in events:
                    if event["model"] == model and event["data"].get("status") == status:
                        return event
            raise AssertionError("the stream has ended")

        assert (await seen("echo/echo", "loaded"))["event"] == "model_status"
        unloaded = await http.post("/models/unload", json={"model": "echo/echo"})
        await seen("echo/echo", "unloaded")
        assert await status_of(http, "echo/echo") == {"value": "unloaded"}
        loaded = await http.post("/models/load", json={"model": "echo/echo"})
        again = await http.post("/models/load", json={"model": "echo/echo"})
        await seen("echo/echo", "loaded")
        assert await status_of(http, "echo/echo") == {"value": "loaded"}

        assert [one.json() for one in (unloaded, loaded, again)] == [{"success": True}] * 3


async def test_stream_ends_when_the_server_stops(settings: Settings) -> None:
    async with (
        running_app(settings) as (app, _),
        listening(app) as url,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http,
        http.stream("GET", "/models/sse") as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        app.state.server.is_draining = True

        async with asyncio.timeout(60):
            rest = [line async for line in lines]

        assert not [line for line in rest if "error" in line]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/models/load", {"model": "nobody"}, 404, "model_not_found"),
        ("/models/unload", {"model": "nobody"}, 404, "model_not_found"),
        ("/models/load", {}, 400, "missing_required_parameter"),
        ("/models/unload", {"model": 5}, 400, "invalid_type"),
    ],
)
async def test_bad_model_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    answer = await client.post(path, json=body)

    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        status,
        code,
        "model",
    )


def test_only_news_are_events() -> None:
    loading = {"status": "loading", "progress": {"current": "reading", "value": 0.5}}
    known = {"a": {"status": "unloaded"}, "b": {"status": "loaded"}, "gone": {"status": "unloaded"}}

    events = list(changes(known, {"a": loading, "b": {"status": "loaded"}}))

    assert events == [
        {"model": "a", "event": "model_status", "data": loading},
        {"model": "gone", "event": "model_remove", "data": {}},
    ]
