"""A request whose worker dies: retried unseen if nothing was sent, an error at once if something was."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from app_servers import echo_settings, listening, running_app
from fastapi import FastAPI
from httpx import AsyncClient

from app.core.load_request import LoadRequest

BODY = {"model": "echo", "prompt": "The little dog", "max_tokens": 4}


def pid_of_worker(app: FastAPI) -> int:
    return int(app.state.server.catalog.acquire("echo").worker.pid)


async def kill_before_a_token(app: FastAPI) -> None:
    """SIGKILL, as soon as the worker has a request, which it cannot answer: it has been stopped before."""
    worker = app.state.server.catalog.acquire("echo").worker
    os.kill(worker.pid, signal.SIGSTOP)
    while not worker.num_streams:
        await asyncio.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.timeout(900)
async def test_request_without_a_token_is_retried_and_one_with_tokens_ends_with_an_error(tmp_path: Path) -> None:
    settings = echo_settings(tmp_path / "data", echo_itl_s=0.1, queue_timeout_s=300)
    async with running_app(settings) as (app, client):
        await app.state.server.loader.load(LoadRequest(model="echo"), wait=True)

        killing = asyncio.create_task(kill_before_a_token(app))
        await asyncio.sleep(0)
        answer = await client.post("/v1/completions", json=BODY, timeout=400)
        await killing

        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 4)
        async with listening(app) as url, AsyncClient(base_url=url, timeout=60) as http:
            events = await events_of_a_killed_stream(app, http)
        assert json.loads(events[-1])["error"]["code"] == "worker_crashed"
        assert len(events) > 1
        assert "[DONE]" not in events


async def events_of_a_killed_stream(app: FastAPI, http: AsyncClient) -> list[str]:
    """What a reader gets whose worker is killed after the first event."""
    events: list[str] = []
    async with http.stream("POST", "/v1/completions", json={**BODY, "max_tokens": 2000, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line:
                events.append(line.removeprefix("data: "))
            if len(events) == 1:
                os.kill(pid_of_worker(app), signal.SIGKILL)
    return events
