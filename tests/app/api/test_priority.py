"""`priority`: of the requests that wait for a place, the smaller number begins first."""

import asyncio
from pathlib import Path

import httpx
import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, running_app
from sse_reading import completion

pytestmark = pytest.mark.timeout(LOAD_TIMEOUT_S)


async def test_waiting_requests_begin_in_order_of_priority(tmp_path: Path) -> None:
    async with running_app(echo_settings(tmp_path / "data", max_num_seqs=1, echo_itl_s=0.02)) as (_, client):
        await client.post("/v1/load", json={"model": "echo/echo", "wait": True})
        ended: list[int] = []

        async def ask(priority: int, max_tokens: int) -> None:
            body = completion(model="echo/echo", max_tokens=max_tokens, priority=priority)
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            ended.append(priority)

        first = asyncio.create_task(ask(-100, 4000))
        await reached(client, running=1, waiting=0)
        others = [asyncio.create_task(ask(priority, 2)) for priority in (7, 0, 3, -5)]
        await reached(client, running=1, waiting=4)
        first.cancel()
        await asyncio.gather(*others)

    assert ended == [-5, 0, 3, 7]


async def reached(client: httpx.AsyncClient, *, running: int, waiting: int) -> None:
    """Wait until the engine says so."""
    while True:
        variant = (await client.get("/v1/variants/echo/echo")).json()
        if (variant["running"], variant["waiting"]) == (running, waiting):
            return
        await asyncio.sleep(0.01)
