"""A server with keys, as `slimserve serve` runs it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from raw_http import KEY

ROOT = Path(__file__).resolve().parents[2]
MAX_QUEUE = 4
SETTINGS = {
    "SLIMSERVE_ENABLE_ECHO": "1",
    "SLIMSERVE_ECHO_ITL_S": "0.002",
    "SLIMSERVE_MAX_QUEUE": str(MAX_QUEUE),
    "SLIMSERVE_API_KEYS": KEY,
    "SLIMSERVE_INFERENCE_KEYS": "infer",
}
STOP_TIMEOUT_S = 300


@dataclass(frozen=True)
class Server:
    """A running server; models_dir: where it may load models from."""

    url: str
    models_dir: Path
    process: psutil.Process


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """`echo/main` is ready; it repeats its prompt, 2 ms per token."""
    models_dir = folder / "models"
    models_dir.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLIMSERVE_")}
    options = ["--port", "0", "--data-dir", str(folder / "data"), "--load", "echo/main", "--num-threads", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", *options, "--models-dir", str(models_dir)],
            cwd=ROOT,
            env={**environment, **SETTINGS, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        yield Server(_url_when_ready(process, folder / "log"), models_dir, psutil.Process(process.pid))
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
