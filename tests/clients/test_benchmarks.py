"""Benchmark clients: every request of theirs ends well, and they count the tokens that they asked for."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from app import embedded
from tests.clients.asking import MODEL
from tests.clients.programs import client_program, run_client
from tests.e2e.cli_server import CliServer

TOKENIZER = embedded.model_path()
NUM_REQUESTS = 8
NUM_TOKENS = 16


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_guidellm(server: CliServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    run_client(
        [
            *(client_program("harness", "guidellm"), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={server.url},model={MODEL}"),
            *("--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}"),
            *("--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={NUM_TOKENS}"),
            *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
            *("--output", f"kind=json,path={report}"),
        ]
    )

    (benchmark,) = read(report)["benchmarks"]
    assert benchmark["metrics"]["request_totals"] == {
        "successful": NUM_REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": NUM_REQUESTS,
    }
    assert {request["output_metrics"]["text_tokens"] for request in benchmark["requests"]["successful"]} == {NUM_TOKENS}


@pytest.mark.parametrize(("backend", "endpoint"), [("openai", "completions"), ("openai-chat", "chat/completions")])
def test_vllm_bench_serve(server: CliServer, tmp_path: Path, backend: str, endpoint: str) -> None:
    python = os.environ.get("VLLM_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("needs VLLM_PYTHON with vllm: run `make interop`")

    run_client(
        [
            *(python, Path(__file__).with_name("vllm_bench.py"), "--backend", backend, "--endpoint", f"/v1/{endpoint}"),
            *("--base-url", server.url, "--model", MODEL, "--tokenizer", TOKENIZER, "--dataset-name", "random"),
            *("--random-input-len", "32", "--random-output-len", str(NUM_TOKENS), "--ignore-eos"),
            *("--num-prompts", str(NUM_REQUESTS), "--max-concurrency", "2"),
            *("--save-result", "--result-dir", tmp_path, "--result-filename", "result.json"),
        ]
    )

    result = read(tmp_path / "result.json")
    assert (result["completed"], result["failed"]) == (NUM_REQUESTS, 0)
    assert result["total_output_tokens"] == NUM_REQUESTS * NUM_TOKENS


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_aiperf(server: CliServer, tmp_path: Path, endpoint: str) -> None:
    run_client(
        [
            *(client_program("aiperf", "aiperf"), "profile", "--model", MODEL, "--url", server.url, "--ui", "none"),
            *("--endpoint-type", endpoint, "--streaming", "--tokenizer", TOKENIZER, "--use-server-token-count"),
            *("--synthetic-input-tokens-mean", "32", "--output-tokens-mean", str(NUM_TOKENS)),
            *("--extra-inputs", "ignore_eos:true", "--request-count", str(NUM_REQUESTS), "--concurrency", "2"),
            *("--output-artifact-dir", tmp_path),
        ],
        # any other text, 0 too, means offline to it, and the folder of a tokenizer then a name on the hub
        HF_HUB_OFFLINE="",
    )

    result = read(tmp_path / "profile_export_aiperf.json")
    assert result["request_count"]["avg"] == NUM_REQUESTS
    assert result["error_summary"] == []
    assert result["total_usage_completion_tokens"]["avg"] == NUM_REQUESTS * NUM_TOKENS
    assert read(tmp_path / "server_metrics_export.json")["summary"]["endpoints_successful"]
