"""Streams over real sockets: silence is filled, and a reader that stalls is cut off and harms nobody."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, listening, running_app
from sse_reading import completion

from app.api import sse
from app.core.load_request import LoadRequest
from app.settings import Settings

pytestmark = pytest.mark.timeout(2 * LOAD_TIMEOUT_S)
CANCELLED = 'slimserve_requests_total{finish_reason="cancelled",status="cancelled",variant="echo/echo"}'
RUNNING = 'slimserve_requests_running{variant="echo/echo"}'
MESSAGES = [{"role": "user", "content": "The little dog"}]


async def served(settings: Settings) -> AsyncIterator[str]:
    """The URL of a server of its own whose `echo/echo` is ready."""
    async with running_app(settings) as (app, _):
        await app.state.server.loader.load(LoadRequest(model="echo"), wait=True)
        async with listening(app) as url:
            yield url


@pytest.fixture
async def slow_url(tmp_path: Path) -> AsyncIterator[str]:
    """A token every second, a ping after 0.2 s of silence."""
    async for url in served(echo_settings(tmp_path / "data", echo_itl_s=1, ping_interval_s=0.2)):
        yield url


@pytest.fixture
async def fast_url(tmp_path: Path) -> AsyncIterator[str]:
    """Tokens as fast as they come."""
    async for url in served(echo_settings(tmp_path / "data", echo_itl_s=0)):
        yield url


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=LOAD_TIMEOUT_S, trust_env=False)


async def sample(http: httpx.AsyncClient, name: str) -> float:
    """The value of one sample, 0 if there is none yet."""
    lines = (await http.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def reached(http: httpx.AsyncClient, name: str, least: float, most: float) -> None:
    """Wait until a sample is in this range."""
    until_s = time.monotonic() + LOAD_TIMEOUT_S
    while not least <= await sample(http, name) <= most:
        assert time.monotonic() < until_s, name
        await asyncio.sleep(0.02)


def post_bytes(url: str, path: str, body: dict[str, Any]) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", f"host: {urlsplit(url).netloc}", "content-type: application/json"]
    return "\r\n".join([*head, f"content-length: {len(data)}"]).encode() + b"\r\n\r\n" + data


async def test_silence_is_filled_with_comments(slow_url: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": completion(model="echo/echo", max_tokens=4000),
        "/v1/messages": {"model": "echo/echo", "messages": MESSAGES, "max_tokens": 4000},
        "/v1/responses": {"model": "echo/echo", "input": "The little dog", "max_output_tokens": 4000},
    }

    async def pings(http: httpx.AsyncClient, path: str) -> None:
        """Read until silence has been filled twice; whatever stands between the comments is whole events."""
        num_pings = 0
        async with http.stream("POST", path, json={**bodies[path], "stream": True}) as answer:
            async for line in answer.aiter_lines():
                assert line == "" or line.startswith(("data: ", "event: ", ": ping")), path
                num_pings += line == ": ping"
                # the status came with the first token, which has no text; the next ones are a second apart
                if num_pings == 2:
                    return

    async with client(slow_url) as http:
        await asyncio.gather(*(pings(http, path) for path in bodies))
        short = await http.post("/v1/completions", json=completion(model="echo/echo", max_tokens=2, stream=True))

    assert short.text.endswith("data: [DONE]\n\n"), "no comment follows the end"


async def test_reader_that_stalls_is_cut_off_and_its_neighbours_do_not_notice(
    fast_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 1)
    address = urlsplit(fast_url)
    options = {"include_usage": True, "continuous_usage_stats": True}
    # some 16 MB of events: more than the buffers of both sides hold
    endless = completion(model="echo/echo", max_tokens=3000, n=16, stream=True, stream_options=options)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((address.hostname, address.port))
        stalled.sendall(post_bytes(fast_url, "/v1/completions", endless))

        async with client(fast_url) as http:
            # it may have been cut off by the time that we look
            while not (await sample(http, RUNNING) or await sample(http, CANCELLED)):
                await asyncio.sleep(0.02)
            neighbours = await asyncio.gather(
                *(
                    http.post("/v1/completions", json=completion(model="echo/echo", max_tokens=50, stream=True))
                    for _ in range(4)
                )
            )
            await reached(http, CANCELLED, 1, 1)
            await reached(http, RUNNING, 0, 0)

    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in neighbours)
