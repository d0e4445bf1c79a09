"""The HTTP layer alone: requests per second and microseconds per event, with the echo model behind a real worker.

Starts `slimserve serve` itself and talks to it over raw sockets. Wall time depends on what else the machine does; the
processor time of the front end, read from the kernel, hardly does, so both are told.

    python benchmarks/http_layer.py [--seconds 5] [--output http_layer.json]
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
from machine import describe_machine, tell

ROOT = Path(__file__).resolve().parent.parent
MODEL = "echo/bench"
START_TIMEOUT_S = 300
STREAM_TOKENS = 3000
CONNECTIONS = 16


class Connection:
    """One kept-alive HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str, body: dict[str, Any]) -> bytes:
        """Send a request and return the whole answer's body. Raises RuntimeError unless it is 200."""
        await self._send(path, body)
        length = int(re.search(rb"content-length: (\d+)", await self._head())[1])
        return await self._reader.readexactly(length)

    async def stream(self, path: str, body: dict[str, Any]) -> tuple[float, int]:
        """Seconds to the first event with text, and the number of events."""
        start_s, first_s, num_events = time.perf_counter(), 0.0, 0
        await self._send(path, {**body, "stream": True})
        await self._head()
        while (size := int(await self._reader.readline(), 16)) > 0:
            data = await self._reader.readexactly(size + 2)
            first_s = first_s or time.perf_counter() - start_s
            num_events += data.count(b"data: ")
        await self._reader.readline()
        return first_s, num_events

    async def _send(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await self._writer.drain()

    async def _head(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode("latin-1"))
        return head.lower()


@contextmanager
def running_server() -> Iterator[tuple[psutil.Process, int]]:
    """A server with a loaded echo model: its process and its port."""
    environment = {**os.environ, "SLIMSERVE_ENABLE_ECHO": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", folder, "--load", MODEL]
        process = psutil.Popen(
            [*command, "--num-threads", "1", "--log-level", "error"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process, _port_when_ready(process)
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()


def _port_when_ready(process: psutil.Popen) -> int:
    port = 0
    for line in process.stdout:
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            port = int(match[1])
        if line.startswith("ready"):
            return port
    raise RuntimeError("the server has ended before it was ready")


def completion(num_tokens: int) -> dict[str, Any]:
    """A body for /v1/completions."""
    return {"model": MODEL, "prompt": "Once upon a time there was a little dog.", "max_tokens": num_tokens}


def chat(num_tokens: int) -> dict[str, Any]:
    """A body for /v1/chat/completions."""
    message = {"role": "user", "content": "Tell me a story about a little dog."}
    return {"model": MODEL, "messages": [message], "max_tokens": num_tokens}


async def closed_loop(
    open_connection: Callable[[], Awaitable[Connection]],
    path: str,
    body: dict[str, Any],
    *,
    connections: int,
    seconds: float,
) -> list[float]:
    """Seconds that each request took, from `connections` clients that ask again as soon as they have an answer."""
    latencies_s: list[float] = []

    async def client() -> None:
        connection = await open_connection()
        until_s = time.perf_counter() + seconds
        while (start_s := time.perf_counter()) < until_s:
            await connection.ask(path, body)
            latencies_s.append(time.perf_counter() - start_s)

    await asyncio.gather(*(client() for _ in range(connections)))
    return latencies_s


def cpu_s(process: psutil.Process) -> float:
    """Processor time of the front end so far, without its children."""
    times = process.cpu_times()
    return times.user + times.system


async def measure(process: psutil.Process, port: int, seconds: float) -> dict[str, Any]:
    """Every figure of the result."""

    def connect() -> Awaitable[Connection]:
        return Connection.open(port)

    results: dict[str, Any] = {}
    for name, path, body in (
        ("completions", "/v1/completions", completion(1)),
        ("chat", "/v1/chat/completions", chat(1)),
    ):
        await closed_loop(connect, path, body, connections=1, seconds=0.5)
        for connections in (1, CONNECTIONS):
            before_s, start_s = cpu_s(process), time.perf_counter()
            latencies_s = await closed_loop(connect, path, body, connections=connections, seconds=seconds)
            wall_s = time.perf_counter() - start_s
            percentiles = quantiles(latencies_s, n=100)
            results[f"{name}_{connections}_connections"] = {
                "requests_per_s": round(len(latencies_s) / wall_s, 1),
                "p50_ms": round(percentiles[49] * 1e3, 2),
                "p99_ms": round(percentiles[98] * 1e3, 2),
                "front_end_cpu_us_per_request": round((cpu_s(process) - before_s) / len(latencies_s) * 1e6, 1),
            }
    for name, path, body in (
        ("completions", "/v1/completions", completion(STREAM_TOKENS)),
        ("chat", "/v1/chat/completions", chat(STREAM_TOKENS)),
    ):
        results[f"{name}_single_stream"] = await measure_stream(process, await connect(), path, body, seconds)
    return results


async def measure_stream(
    process: psutil.Process, connection: Connection, path: str, body: dict[str, Any], seconds: float
) -> dict[str, float]:
    """One stream after the other, each as fast as the engine can."""
    before_s, start_s = cpu_s(process), time.perf_counter()
    num_events, first_s = 0, []
    while time.perf_counter() - start_s < seconds:
        first, events = await connection.stream(path, body)
        first_s.append(first)
        num_events += events
    wall_s = time.perf_counter() - start_s
    return {
        "events_per_s": round(num_events / wall_s, 1),
        "us_per_event": round(wall_s / num_events * 1e6, 1),
        "front_end_cpu_us_per_event": round((cpu_s(process) - before_s) / num_events * 1e6, 1),
        "first_event_ms": round(min(first_s) * 1e3, 2),
    }


def main() -> None:
    """Run and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement")
    parser.add_argument("--output", type=Path, help="file for the JSON as well")
    arguments = parser.parse_args()
    machine = describe_machine()
    with running_server() as (process, port):
        results = asyncio.run(measure(process, port, arguments.seconds))
    machine["load_average_after"] = os.getloadavg()
    tell({"machine": machine, "http_layer": results}, arguments.output)


if __name__ == "__main__":
    main()
