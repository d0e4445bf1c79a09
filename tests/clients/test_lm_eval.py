"""lm-eval scores what transformers scores, for the base and for every kind of stored weight."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.asking import MODEL
from tests.clients.programs import client_program, run_client
from tests.e2e.cli_server import CliServer

LM_EVAL = client_program("harness", "lm_eval")
TASKS = Path(__file__).parent / "lm_eval_tasks"
DOCUMENTS = TASKS / "endings.jsonl"
# Nats. fp32 on both sides, in another order of the sums; measured: 2e-6.
TOLERANCE = 1e-3
METHODS = ("int8", "nf4", "gptq", "awq")


def loaded(http: httpx.Client, model: str) -> dict[str, Any]:
    """A variant that serves in fp32, as /v1/models tells of it."""
    answer = http.post("/v1/load", json={"model": model, "dtype": "fp32", "wait": True})
    assert answer.status_code == 200, answer.text
    model_item: dict[str, Any] = http.get(f"/v1/models/{answer.json()['id']}").json()
    return model_item


@pytest.fixture(scope="module")
def variants(server: CliServer) -> Iterator[dict[str, dict[str, Any]]]:
    """Method -> the variant of the embedded model, all in fp32. Other tests find the server as it was."""
    with server.client() as http:
        jobs = {method: http.post("/v1/quantize", json={"model": MODEL, "method": method}).json() for method in METHODS}
        for job in jobs.values():
            http.get(f"/v1/jobs/{job['id']}/events", timeout=None)
        found = {"fp32": loaded(http, MODEL)} | {method: loaded(http, job["variant"]) for method, job in jobs.items()}
        yield found
        for variant in found.values():
            http.post("/v1/unload", json={"model": variant["id"], "wait": True}).raise_for_status()
        for job in jobs.values():
            http.delete(f"/v1/variants/{job['variant']}").raise_for_status()


@pytest.fixture(scope="module")
def expected(variants: dict[str, dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Method -> transformers' scores of each document's endings."""
    python = os.environ.get("SLIMSERVE_PYTHON", sys.executable)
    folders = [f"{method}={variant['root']}" for method, variant in variants.items()]
    command = [python, "-m", "tests.clients.reference_scores", str(DOCUMENTS), *folders]
    done = subprocess.run(command, cwd=TASKS.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    scores: dict[str, list[list[float]]] = json.loads(done.stdout)
    return scores


class Harness:
    """One run of lm-eval, and what it wrote."""

    def __init__(self, folder: Path, task: str, model: str, arguments: str) -> None:
        self._folder = folder
        run_client(
            [
                *(LM_EVAL, "run", "--model", model, "--tasks", task, "--include_path", TASKS),
                *("--model_args", arguments, "--output_path", folder, "--log_samples"),
                *(["--apply_chat_template"] if "chat" in model else []),
            ],
            cwd=TASKS,
        )

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """One entry per document, in the file's order."""
        (path,) = self._folder.rglob("samples_*.jsonl")
        samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return sorted(samples, key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("method", ["fp32", *METHODS])
def test_loglikelihoods_are_those_of_transformers(
    server: CliServer,
    variants: dict[str, dict[str, Any]],
    expected: dict[str, list[list[float]]],
    tmp_path: Path,
    method: str,
) -> None:
    model = variants[method]["id"]
    url = f"{server.url}/v/{model}/v1/completions"
    arguments = f"model={model},base_url={url},tokenizer_backend=remote,num_concurrent=4"

    samples = Harness(tmp_path, "slimserve_endings", "local-completions", arguments).samples

    scores = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    for ours, theirs in zip(scores, expected[method], strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=0)


def test_tokenizer_of_the_folder_gives_the_same_scores(
    server: CliServer,
    variants: dict[str, dict[str, Any]],
    expected: dict[str, list[list[float]]],
    tmp_path: Path,
) -> None:
    model, folder = variants["fp32"]["id"], variants["fp32"]["root"]
    arguments = f"model={model},base_url={server.url}/v1/completions,tokenizer_backend=huggingface,tokenizer={folder}"

    samples = Harness(tmp_path, "slimserve_endings", "local-completions", arguments).samples

    for sample, theirs in zip(samples, expected["fp32"], strict=True):
        assert [float(response[0][0]) for response in sample["resps"]] == pytest.approx(theirs, abs=TOLERANCE, rel=0)


def test_chat_generates_until_the_stop_string(server: CliServer, tmp_path: Path) -> None:
    arguments = f"model={MODEL},base_url={server.url}/v1/chat/completions,num_concurrent=4"

    samples = Harness(tmp_path, "slimserve_stories", "local-chat-completions", arguments).samples

    answers = [sample["resps"][0][0] for sample in samples]
    assert len(answers) == len(DOCUMENTS.read_text("utf-8").splitlines())
    assert all(answer and "." not in answer for answer in answers)
