"""A server that refuses unknown fields and counts each key's requests; no model is needed for either."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn
from cases import chat
from raw_http import KEY, Answer, exchange

from app.cli.http_server import configure
from app.main import create_app
from app.settings import Settings

PER_MINUTE = 3


@pytest.fixture
async def strict_url(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a server on a real socket, with the parser that `slimserve serve` has."""
    settings = Settings(
        data_dir=tmp_path / "data", strict_params=True, api_keys=(KEY,), key_requests_per_minute=PER_MINUTE
    )
    app = create_app(settings)
    server = uvicorn.Server(configure(app, drain_timeout_s=5))
    server.config.port = 0
    async with app.router.lifespan_context(app):
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        await task


async def ask(url: str, data: bytes) -> Answer:
    """A blocking exchange beside the server's loop."""
    return await asyncio.to_thread(exchange, url, data)


async def test_b97_strict_server_refuses_what_it_does_not_know(strict_url: str) -> None:
    answer = await ask(strict_url, chat(foo=1))

    error = answer.error
    assert (answer.status, error["code"], error["param"]) == (400, "unknown_parameter", "foo")


async def test_b101_key_that_asks_too_often_is_told_when_to_come_back(strict_url: str) -> None:
    answers = [await ask(strict_url, chat(model="nobody")) for _ in range(PER_MINUTE + 1)]

    assert [answer.status for answer in answers] == [404] * PER_MINUTE + [429]
    last = answers[-1]
    assert (last.error["type"], last.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(last.headers["retry-after"]) <= 60
