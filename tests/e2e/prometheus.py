"""A real Prometheus, started with the configuration of docker/ turned on a server of the tests."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from cli_server import ROOT
from promql import RULES

FOLDER = os.environ.get("SLIMSERVE_TEST_PROMETHEUS")
CONFIG = ROOT / "docker" / "prometheus" / "prometheus.yaml"
SCRAPE_S = 1
_DEADLINE_S = 120

T = TypeVar("T")


def program(name: str) -> Path:
    """prometheus or promtool."""
    assert FOLDER is not None
    return Path(FOLDER).resolve() / "usr" / "bin" / name


def promtool(*arguments: str | Path, text: str | None = None) -> tuple[int, str]:
    """Exit status and everything it said."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
    return done.returncode, done.stdout + done.stderr


def eventually(look: Callable[[], T]) -> T:
    """What `look` returns once it is true."""
    deadline = time.monotonic() + _DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(SCRAPE_S / 4)
    return found


@dataclass
class Prometheus:
    """Its API. started_s: Unix seconds."""

    http: httpx.Client
    started_s: float

    def now(self, expr: str) -> list[dict[str, Any]]:
        """Series and their newest values."""
        return self._get("query", query=expr)["result"]

    def values(self, expr: str, *, is_instant: bool) -> list[float]:
        """Every number that a panel with this expression shows; a panel over time shows all since the start."""
        if is_instant:
            return [float(series["value"][1]) for series in self.now(expr)]
        return self.between(expr, self.started_s)

    def between(self, expr: str, since_s: float) -> list[float]:
        """Every value of every series from since_s, Unix seconds, to now."""
        found = self._get("query_range", query=expr, start=since_s, end=time.time(), step=SCRAPE_S)["result"]
        return [float(value) for series in found for _, value in series["values"]]

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Every alert by its name."""
        return {rule["name"]: rule for group in self._get("rules")["groups"] for rule in group["rules"]}

    def _get(self, route: str, **params: Any) -> Any:
        answer = self.http.get(f"/api/v1/{route}", params=params)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()["data"]


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes target (host:port) every second; same rules as in docker/, evaluated as often."""
    key = folder / "key"
    key.write_text("any", "utf-8")
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    config["rule_files"] = [str(RULES)]
    (scraped,) = config["scrape_configs"]
    scraped["static_configs"] = [{"targets": [target]}]
    scraped["authorization"]["credentials_file"] = str(key)
    path = folder / "prometheus.yaml"
    path.write_text(json.dumps(config), "utf-8")
    status, said = promtool("check", "config", path)
    assert status == 0, said
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (
        (folder / "prometheus.log").open("wb") as log,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
    ):
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            eventually(lambda: process.poll() is not None or _is_ready(http))
            assert process.poll() is None, (folder / "prometheus.log").read_text("utf-8")
            yield Prometheus(http, time.time())
        finally:
            process.terminate()
            process.wait(_DEADLINE_S)


def _is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/-/ready").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
