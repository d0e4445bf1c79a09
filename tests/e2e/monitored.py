"""A server under real traffic: the embedded model and variants of it, jobs, answers, clients that leave, refusals."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cli_server import CliServer, running_server
from prometheus_client.parser import text_string_to_metric_families

BASE = "slimstory"
INT8: dict[str, Any] = {"method": "int8"}
# Looks at a text, layer by layer, and so takes long enough for its progress to be seen.
GPTQ: dict[str, Any] = {"method": "gptq", "calibration": {"num_samples": 16, "sequence_length": 128}}
_DEADLINE_S = 300


@dataclass
class MonitoredServer:
    """The server, and every series that it has told so far: name to labels."""

    server: CliServer
    known: dict[str, set[str]] = field(default_factory=dict)
    documented: set[str] = field(default_factory=set)

    def scrape(self, client: httpx.Client) -> str:
        """GET /metrics, and remember what is in it."""
        text = client.get("/metrics").text
        for family in text_string_to_metric_families(text):
            self.documented.add(family.name)
            for sample in family.samples:
                self.known.setdefault(sample.name, set()).update(sample.labels)
        return text

    def run_job(self, client: httpx.Client, route: str, body: dict[str, Any]) -> None:
        """Start a job and scrape until it has succeeded."""
        answer = client.post(route, json=body)
        assert answer.status_code == httpx.codes.ACCEPTED, answer.text
        deadline = time.monotonic() + _DEADLINE_S
        while (job := client.get(f"/v1/jobs/{answer.json()['id']}").json())["state"] != "succeeded":
            assert job["state"] != "failed", job
            assert time.monotonic() < deadline, job
            self.scrape(client)
            time.sleep(0.1)

    def ask(self, client: httpx.Client, model: str) -> None:
        """One answer that is read, one stream that is left, one request that is refused."""
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 16, "ignore_eos": True}
        assert client.post("/v1/completions", json=body).status_code == httpx.codes.OK
        with client.stream("POST", "/v1/completions", json={**body, "max_tokens": 200, "stream": True}) as response:
            next(response.iter_lines())
        assert client.post("/v1/completions", json={**body, "max_tokens": 10**6}).is_client_error

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Ask both variants, again and again, until the block ends."""
        stop = threading.Event()

        def ask_on(model: str) -> None:
            with self.server.client() as client:
                while not stop.is_set():
                    self.ask(client, model)

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask_on, model) for model in (BASE, variant_of(INT8))]
            try:
                yield
            finally:
                stop.set()
        for one in asking:
            one.result()


@contextmanager
def monitored_server(folder: Path) -> Iterator[MonitoredServer]:
    """The embedded model is ready; nothing has been asked."""
    with running_server(folder) as server:
        yield MonitoredServer(server)


def variant_of(recipe: dict[str, Any]) -> str:
    """The id that the variant gets here."""
    return f"{BASE}/{recipe['method']}"


def compress_and_measure(monitored: MonitoredServer, recipe: dict[str, Any]) -> None:
    """Make a variant, measure it, and load it."""
    variant = variant_of(recipe)
    with monitored.server.client() as client:
        monitored.run_job(client, "/v1/quantize", {"model": BASE, "name": recipe["method"], **recipe})
        monitored.run_job(client, "/v1/measure", {"model": variant, "speed": False, "max_tokens": 512})
        assert client.post("/v1/load", json={"model": variant, "wait": True}).status_code == httpx.codes.OK
