"""Servers for tests of the front end: the parts behind the routes, the application over ASGI, a real socket."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from app.core.server import Server
from app.main import create_app
from app.settings import Settings

# A worker imports torch; on a machine that is busy with other tests that takes a while.
LOAD_TIMEOUT_S = 500
# Fields of a compression that takes tens of seconds: it is still at work when a test comes back to it.
LONG_JOB = {"method": "gptq-int4-g32", "calibration": {"num_samples": 64, "sequence_length": 256}}


def echo_settings(data_dir: Path, **changes: object) -> Settings:
    """Settings for a quick server with the echo model; `changes` win."""
    defaults = {
        "data_dir": data_dir,
        "enable_echo": True,
        "echo_itl_s": 0.002,
        "num_threads": 1,
        "drain_timeout_s": 2,
        "auto_measure": "off",
    }
    return Settings(**{**defaults, **changes})


@asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[Server]:
    """Everything behind the routes, without HTTP."""
    server = Server(settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The application with its lifespan, and a client that talks to it over ASGI."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", timeout=LOAD_TIMEOUT_S
        ) as client:
            yield app, client


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """A uvicorn server for an application whose lifespan runs already; gives its URL."""
    config = uvicorn.Config(app, port=0, lifespan="off", log_level=logging.ERROR, ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
