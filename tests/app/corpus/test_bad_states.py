"""Right requests at the wrong time: of a model that has failed, for a job that is over, where there is no room."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import chat, quantize
from corpus_server import Server
from raw_http import Answer, exchange, post, request

from app import embedded

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(server: Server, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A model's folder that the server may read, named after the test."""
    folder = server.models_dir / request.node.name.replace("_", "-")[:40]
    shutil.copytree(embedded.model_path(), folder)
    yield folder
    shutil.rmtree(folder)


def said(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.error["type"], answer.error["code"]


def test_b54_failed_model_says_so_and_names_the_way_out(server: Server, folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    # the weights do not fit this shape, which only a load finds out
    config["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    load = exchange(server.url, post("/v1/load", {"model": str(folder), "name": "misfit", "wait": True}))

    answer = exchange(server.url, chat(model="misfit"))

    assert load.status >= 400
    assert said(answer) == (500, "server_error", "worker_crashed")
    assert "retry-after" not in answer.headers
    assert "/v1/load" in answer.error["message"]
    (listed,) = [
        item for item in exchange(server.url, request("GET", "/v1/models")).json["data"] if item["parent"] == "misfit"
    ]
    assert listed["status"] == {"value": "unloaded", "failed": True}


def test_b102_pickled_base_is_unsafe(server: Server, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    answer = exchange(server.url, post("/v1/bases", {"model": str(folder), "name": "pickled"}))

    assert said(answer) == (400, "invalid_request_error", "unsafe_checkpoint")


def test_b102_name_that_is_taken_is_a_conflict(server: Server) -> None:
    first = exchange(server.url, quantize(name="taken"))
    # the stream of a job's events ends with the job
    events = exchange(server.url, request("GET", f"/v1/jobs/{first.json['id']}/events"))

    answer = exchange(server.url, quantize(name="taken"))
    outside = exchange(server.url, request("GET", "/v1/export/slimstory/taken?file=../../slimserve.db"))

    assert said(outside) == (404, "invalid_request_error", "not_found")
    assert '"state":"succeeded"' in events.body.decode()
    assert said(answer) == (409, "conflict_error", "variant_exists")
    assert answer.headers["x-should-retry"] == "false"
    assert exchange(server.url, request("DELETE", "/v1/variants/slimstory/taken")).status == 200


def test_b102_base_larger_than_the_disk_is_refused_at_once(server: Server, folder: Path) -> None:
    _make_huge(folder / "model.safetensors", shutil.disk_usage(folder).free * 2)
    made = exchange(server.url, post("/v1/bases", {"model": str(folder), "name": "huge"}))

    answer = exchange(server.url, quantize(model="huge"))

    assert made.status == 200, made.body
    assert said(answer) == (507, "insufficient_storage", "disk_full")
    assert answer.headers["x-should-retry"] == "false"


def test_b102_model_larger_than_memory_is_refused_at_once(server: Server) -> None:
    answer = exchange(server.url, post("/v1/load", {"model": "slimstory", "kv_cache_bytes": 2**44}))

    assert said(answer) == (507, "insufficient_memory", "does_not_fit")
    assert answer.headers["x-should-retry"] == "false"
    assert "bytes" in answer.error["message"]


def test_b103_jobs_that_are_over_or_at_work_are_conflicts(server: Server) -> None:
    # tens of seconds, so that it is at work until it is cancelled
    slow = {"method": "gptq-int4-g32", "calibration": {"num_samples": 64, "sequence_length": 256}}
    accepted = exchange(server.url, quantize(name="twice", **slow))
    job = f"/v1/jobs/{accepted.json['id']}"

    at_work = exchange(server.url, quantize(name="twice", **slow))
    cancelled = exchange(server.url, request("POST", f"{job}/cancel"))
    over = exchange(server.url, request("POST", f"{job}/cancel"))

    assert (accepted.status, cancelled.status) == (202, 200)
    assert said(at_work) == (409, "conflict_error", "job_running")
    assert said(over) == (409, "conflict_error", "job_finished")
    assert over.headers["x-should-retry"] == "false"


def _make_huge(file: Path, num_bytes: int) -> None:
    """Give a safetensors file one more tensor, as a hole: it takes no disk."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        data = stream.read()
        header["hole"] = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [len(data), len(data) + num_bytes]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        stream.seek(0)
        stream.write(len(encoded).to_bytes(8, "little") + encoded + data)
        end = stream.tell() + num_bytes
    os.truncate(file, end)
