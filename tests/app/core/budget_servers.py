"""Servers whose budget has room for two stand-ins, measured here and not assumed."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, running_server

from app.core import fit
from app.core.load_request import LoadRequest
from app.core.server import Server
from app.core.variants import VariantState
from app.settings import Settings

HANGS_AT_LOAD = "worker.load:hang=3000"


async def measured_echo_bytes(folder: Path) -> int:
    """What one worker of the stand-in holds on this machine."""
    async with running_server(echo_settings(folder)) as server:
        variant = await server.loader.load(LoadRequest(model="echo/probe"), wait=True)
        assert variant.process_bytes is not None
        return variant.process_bytes


def budget_for_two(folder: Path, echo_bytes: int, **changes: object) -> Settings:
    """Settings under which a third stand-in has no room: estimates are set to 1.1 of what one holds."""
    defaults = {"memory_bytes": int(2.6 * echo_bytes), "autoload_wait_s": LOAD_TIMEOUT_S}
    return echo_settings(folder, **{**defaults, **changes})


def estimate_as(echo_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the estimate of an unmeasured stand-in 1.1 of what it holds."""
    monkeypatch.setattr(fit, "_PROCESS_BYTES", int(1.1 * echo_bytes))


async def load_echoes(server: Server, *names: str, **options: object) -> None:
    """Load stand-ins one after the other, so that the first is the least recently used."""
    for name in names:
        await server.loader.load(LoadRequest(model=f"echo/{name}", **options), wait=True)


def states(server: Server) -> dict[str, VariantState]:
    """The state of every stand-in, by the second part of its name."""
    return {one.id.partition("/")[2]: one.state for one in server.catalog.list() if one.base == "echo"}


def hang_at_load(server: Server) -> None:
    """From now on every worker hangs before it reads anything."""
    server.supervisor.watch = replace(server.supervisor.watch, faults=HANGS_AT_LOAD)


async def until(condition: Callable[[], bool], deadline_s: float = LOAD_TIMEOUT_S) -> None:
    """Wait for something that nobody announces."""
    until_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come to pass in time"
        await asyncio.sleep(0.02)
