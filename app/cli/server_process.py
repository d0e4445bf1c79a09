"""A server that the command line starts for itself, as a process of its own: start, find again, stop."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from app.cli.client import Client
from app.cli.terminal import CommandFailed

# Seconds on an idle machine; minutes where many processes share two cores.
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 45
_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A running server. The creation time tells it from a later process with the same id."""

    pid: int
    created_s: float
    url: str

    def process(self) -> psutil.Process | None:
        """The process, or None when it has ended."""
        try:
            found = psutil.Process(self.pid)
            is_same = found.create_time() == self.created_s and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if is_same else None

    def stop(self) -> None:
        """Ask it to stop, wait until it has drained, and kill it if it does not end in time."""
        found = self.process()
        if found is None:
            return
        found.terminate()
        try:
            found.wait(_STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            found.kill()
            found.wait(_STOP_TIMEOUT_S)


def free_port(host: str, preferred: int) -> int:
    """The preferred port if nobody listens there, else one that is free now."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CommandFailed(f"no free port on {host}")


def start(run_dir: Path, *, host: str, port: int) -> ServerProcess:
    """Start `slimserve serve` with its state and log below `run_dir`, and wait until it takes requests.

    It measures no variant by itself: whoever starts it this way is about to, and wants nobody else at work.
    Raises CommandFailed with the end of its log if it does not get that far.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log_path = run_dir / "server.log"
    command = [sys.executable, "-m", "app", "serve", "--host", host, "--port", str(port)]
    command += ["--data-dir", str(run_dir / "data"), "--auto-measure", "off"]
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    created_s = psutil.Process(child.pid).create_time()
    server = ServerProcess(pid=child.pid, created_s=created_s, url=f"http://{host}:{port}")
    _state_path(run_dir).write_text(json.dumps(asdict(server)), "utf-8")
    try:
        _wait_until_ready(server, child, log_path)
    except BaseException:
        server.stop()
        raise
    return server


def find(run_dir: Path) -> ServerProcess | None:
    """The server that was started below `run_dir`, if it still runs."""
    try:
        server = ServerProcess(**json.loads(_state_path(run_dir).read_text("utf-8")))
    except FileNotFoundError:
        return None
    return server if server.process() is not None else None


def _state_path(run_dir: Path) -> Path:
    return run_dir / "server.json"


def _wait_until_ready(server: ServerProcess, child: "subprocess.Popen[bytes]", log_path: Path) -> None:
    client = Client(server.url)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not client.is_ready():
        if child.poll() is not None or time.monotonic() > deadline:
            tail = log_path.read_text("utf-8", errors="replace")[-2000:]
            raise CommandFailed(f"the server did not start; the end of {log_path}:\n{tail}")
        time.sleep(_POLL_S)
    client.close()
