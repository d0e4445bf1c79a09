"""A client that leaves takes its request with it, streamed or not."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from echo_process import running_echo
from sse_reading import MODEL, completion

CANCELLED = 'slimserve_requests_total{finish_reason="cancelled",status="cancelled",variant="echo/main"}'
RUNNING = 'slimserve_requests_running{variant="echo/main"}'
DEADLINE_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of its own, at 50 ms per token: what a client leaves would have gone on for minutes."""
    settings = {"SLIMSERVE_MAX_QUEUE": "8", "SLIMSERVE_ECHO_ITL_S": "0.05"}
    with running_echo(tmp_path_factory.mktemp("slow"), settings) as (url, _):
        yield url


async def metric(http: httpx.AsyncClient, name: str) -> float:
    """The value of one sample, 0 if there is none yet."""
    lines = (await http.get("/metrics")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def reached(http: httpx.AsyncClient, name: str, value: float) -> bool:
    """Wait until a sample has this value."""
    until_s = time.monotonic() + DEADLINE_S
    while await metric(http, name) != value:
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(0.02)
    return True


def posted(path: str, body: dict[str, Any]) -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


MESSAGES = [{"role": "user", "content": "The little dog"}]
LONG: dict[str, dict[str, Any]] = {
    "/v1/completions": completion(max_tokens=4000),
    "/v1/chat/completions": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4000, "n": 2},
    "/v1/responses": {"model": MODEL, "input": "The little dog", "max_output_tokens": 4000},
    "/v1/messages": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4000},
    "/v1/generate": {"model": MODEL, "prompt": "The little dog", "max_tokens": 4000},
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("path", LONG)
async def test_engine_stops_when_the_client_is_gone(
    http: httpx.AsyncClient, served: str, path: str, stream: bool
) -> None:
    cancelled = await metric(http, CANCELLED)
    address = urlsplit(served)
    _, writer = await asyncio.open_connection(address.hostname, address.port)

    writer.write(posted(path, {**LONG[path], "stream": stream}))
    assert await reached(http, RUNNING, LONG[path].get("n", 1))
    writer.transport.abort()

    assert await reached(http, CANCELLED, cancelled + 1)
    assert await reached(http, RUNNING, 0)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_client_that_has_asked_for_more_already_is_noticed_too(
    http: httpx.AsyncClient, served: str, stream: bool
) -> None:
    cancelled = await metric(http, CANCELLED)
    address = urlsplit(served)
    _, writer = await asyncio.open_connection(address.hostname, address.port)

    writer.write(posted("/v1/completions", completion(max_tokens=4000, stream=stream)) * 2)
    assert await reached(http, RUNNING, 1)
    writer.transport.abort()

    assert await reached(http, CANCELLED, cancelled + 1)
    assert await reached(http, RUNNING, 0)


async def test_full_queue_refuses_at_once_and_recovers(http: httpx.AsyncClient) -> None:
    async def ask(max_tokens: int = 2) -> httpx.Response:
        return await http.post("/v1/completions", json=completion(max_tokens=max_tokens))

    running = [asyncio.create_task(ask(4000)) for _ in range(8)]
    assert await reached(http, RUNNING, 8)
    refused = await asyncio.gather(*(ask() for _ in range(12)))
    for one in running:
        one.cancel()
    await asyncio.wait(running)
    assert await reached(http, RUNNING, 0)

    assert [answer.status_code for answer in refused] == [429] * 12
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in refused)
    assert (await ask()).status_code == 200
    assert await metric(http, 'slimserve_admission_rejections_total{reason="queue_full"') == 12
