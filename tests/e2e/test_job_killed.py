"""SIGKILL of a compression job at random instants: it goes on, ends with the same bytes, and nothing half-made is seen.

`make chaos` kills twenty times; the everyday suite a few.
"""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from cli_server import CliServer

from tests.server_processes import job_pid

pytestmark = pytest.mark.timeout(1800)

NUM_KILLS = int(os.environ.get("SLIMSERVE_TEST_KILLS", "2"))
BODY = {
    "model": "slimstory",
    "method": "gptq-int4-g32",
    "calibration": {"num_samples": 8, "sequence_length": 128},
}
# Of the variant that is made; its card and its manifest have its name in them.
WEIGHTS = ("model.safetensors", "config.json")


def finished(client: httpx.Client, job_id: str) -> dict[str, object]:
    while (job := client.get(f"/v1/jobs/{job_id}").json())["finished"] is None:
        time.sleep(0.05)
    return job


def hashes(client: httpx.Client, variant: str) -> list[str]:
    files = client.get(f"/v1/export/{variant}").json()["files"]
    return [files[name]["sha256"] for name in WEIGHTS]


def test_job_killed_at_random_instants_ends_with_the_same_bytes(cli_server: CliServer, tmp_path: Path) -> None:
    chance = random.Random(NUM_KILLS)
    with cli_server.client() as client:
        begun_s = time.monotonic()
        first = finished(client, client.post("/v1/quantize", json={**BODY, "name": "whole"}).json()["id"])
        duration_s = time.monotonic() - begun_s
        assert first["state"] == "succeeded", first["error"]
        expected = hashes(client, "slimstory/whole")

        for number in range(NUM_KILLS):
            name = f"slimstory/cut{number}"
            answer = client.post("/v1/quantize", json={**BODY, "name": f"cut{number}"})
            time.sleep(chance.uniform(0.05, 0.95) * duration_s)
            visible = {variant["id"] for variant in client.get("/v1/variants").json()["data"]}
            pid = job_pid(cli_server.process)
            if pid is not None:
                # it still works on the job, so nothing of it was to be seen a moment before
                assert name not in visible
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

            job = finished(client, answer.json()["id"])

            assert job["state"] == "succeeded", job["error"]
            assert hashes(client, name) == expected
    folders = {folder.name for folder in (tmp_path / "data" / "variants").iterdir()}
    assert len(folders) == 1 + NUM_KILLS
    assert not list((tmp_path / "data" / "staging").iterdir())
