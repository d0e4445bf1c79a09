"""`slimserve serve` with the echo model as a process of its own, which no test's event loop can disturb."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
# Draining takes a moment; a machine that is busy with other tests takes far longer.
STOP_TIMEOUT_S = 300


@contextmanager
def running_echo(folder: Path, settings: Mapping[str, str], *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """URL and process of a server whose `echo/main` is ready; it repeats its prompt, 2 ms per token."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SLIMSERVE_")}
    ours = {"SLIMSERVE_ENABLE_ECHO": "1", "SLIMSERVE_ECHO_ITL_S": "0.002", "OMP_NUM_THREADS": "1"}
    usual = ["--port", "0", "--data-dir", str(folder / "data"), "--load", "echo/main", "--num-threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", *usual, *options],
            cwd=ROOT,
            env={**given, **ours, **settings},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield _url_when_ready(process, folder / "log"), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
        assert process.stdout is not None
        process.stdout.close()


def _url_when_ready(process: "subprocess.Popen[str]", log: Path) -> str:
    url = ""
    assert process.stdout is not None
    for line in process.stdout:
        match = re.search(r"http://127\.0\.0\.1:\d+", line)
        url = url or (match[0] if match else "")
        if line.startswith("ready"):
            return url
    raise AssertionError(f"the server has ended before it was ready: {log.read_text()}")
