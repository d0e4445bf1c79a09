"""SIGKILL on either side of the socket, against the server as a user starts it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from cli_server import CliServer, running_server

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

# What takes milliseconds alone. Less than the time-out after which a silent worker counts as hung, which is 180 s.
_AT_ONCE_S = 60.0
# 13 s for 256 tokens: the kill comes in the middle, on a machine of any speed.
_SLOW_STEPS = "worker.step:hang=0.05"


@dataclass
class Received:
    """The events of a stream, and the seconds from the kill, if there was one, to its end."""

    events: list[str] = field(default_factory=list)
    end_after_kill_s: float | None = None

    @property
    def errors(self) -> list[str]:
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        return [chunk["error"]["code"] for chunk in chunks if "error" in chunk]


def stream(client: httpx.Client, model: str, max_tokens: int) -> Iterator[str]:
    body = {
        "model": model,
        "prompt": "Once upon a time",
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == httpx.codes.OK
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def collect(server: CliServer, model: str, max_tokens: int, *, kill_at_first: int | None = None) -> Received:
    """Read a stream to its end; kill a process when its first event has come."""
    received = Received()
    killed_s: float | None = None
    with server.client() as client:
        for event in stream(client, model, max_tokens):
            if kill_at_first is not None and killed_s is None:
                os.kill(kill_at_first, signal.SIGKILL)
                killed_s = time.monotonic()
            received.events.append(event)
    if killed_s is not None:
        received.end_after_kill_s = time.monotonic() - killed_s
    return received


def load_second(server: CliServer) -> tuple[str, str, int, int]:
    """Ids and worker pids of the variant of the start and of another one."""
    first_pids = server.worker_pids()
    with server.client() as client:
        first = client.get("/v1/variants").json()["data"][0]
        other_dtype = "bf16" if first["method"] == "fp32" else "fp32"
        answer = client.post("/v1/load", json={"model": first["base"], "dtype": other_dtype, "wait": True})
    assert answer.status_code == httpx.codes.OK, answer.text
    (first_pid,) = first_pids
    (second_pid,) = server.worker_pids() - first_pids
    return first["id"], answer.json()["id"], first_pid, second_pid


def test_worker_killed_mid_stream_ends_it_with_an_error_and_harms_nothing_else(tmp_path: Path) -> None:
    with running_server(tmp_path, SLIMSERVE_FAULTS=_SLOW_STEPS) as server:
        first, second, first_pid, second_pid = load_second(server)

        with ThreadPoolExecutor(1) as pool:
            neighbour = pool.submit(collect, server, second, 128)
            hurt = collect(server, first, 256, kill_at_first=first_pid)

        assert hurt.errors == ["worker_crashed"]
        assert "[DONE]" not in hurt.events
        assert hurt.end_after_kill_s is not None
        assert hurt.end_after_kill_s < _AT_ONCE_S
        assert neighbour.result().errors == []
        assert neighbour.result().events[-1] == "[DONE]"
        again = server.wait_for_state(first, "ready")
        assert again["restarts"] == 1
        assert second_pid in server.worker_pids()
        assert server.variant(second)["restarts"] == 0
        assert collect(server, first, 8).events[-1] == "[DONE]"


def test_front_end_killed_leaves_no_child(cli_server: CliServer) -> None:
    load_second(cli_server)
    children = cli_server.process.children(recursive=True)

    cli_server.process.kill()
    _, alive = psutil.wait_procs(children, timeout=_AT_ONCE_S)

    assert len(children) >= 2
    assert alive == []
