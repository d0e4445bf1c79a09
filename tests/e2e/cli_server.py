"""`slimserve serve` as a user starts it, and what tests need to know of it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server_processes import serving_pids

ROOT = Path(__file__).resolve().parent.parent.parent
# Generous: a pipeline may run this beside other work on two cores.
_DEADLINE_S = 240


@dataclass
class CliServer:
    """`slimserve serve` on a free port with a data folder of its own."""

    process: psutil.Popen
    url: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_DEADLINE_S, trust_env=False)

    def worker_pids(self) -> set[int]:
        """Processes that serve a variant now."""
        return set(serving_pids(self.process))

    def variant(self, variant_id: str) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.get(f"/v1/variants/{variant_id}").json()
        return found

    def wait_for_state(self, variant_id: str, state: str) -> dict[str, Any]:
        deadline = time.monotonic() + _DEADLINE_S
        while (found := self.variant(variant_id))["state"] != state:
            assert time.monotonic() < deadline, f"{variant_id} is {found['state']}, not {state}: {found['reason']}"
            time.sleep(0.05)
        return found


def environment_without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SLIMSERVE_")}


@contextmanager
def running_server(folder: Path, *, python: str = sys.executable, **settings: str) -> Iterator[CliServer]:
    """A server that serves the embedded model, ready, with its state below the folder.

    python: an interpreter that has slimserve. settings: environment variables, without them no automatic measurement.
    """
    log = folder / "server.log"
    command = [python, "-m", "app", "serve", "--port", "0", "--data-dir", str(folder / "data")]
    with log.open("wb") as output:
        process = psutil.Popen(
            command,
            cwd=ROOT,
            env=environment_without_settings() | {"SLIMSERVE_AUTO_MEASURE": "off"} | settings,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    try:
        url = _announced_url(process, log)
        _wait_until_ready(url, process, log)
        yield CliServer(process, url, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.stdout.close()
        try:
            process.wait(60)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(10)


def _announced_url(process: psutil.Popen, log: Path) -> str:
    for line in process.stdout:
        for word in line.split():
            if word.startswith("http://"):
                return str(word)
    raise AssertionError(f"the server ended without a URL: {log.read_text('utf-8')}")


def _wait_until_ready(url: str, process: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    with httpx.Client(base_url=url, trust_env=False) as client:
        while client.get("/readyz").status_code != httpx.codes.OK:
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.05)
