"""The commands of the command line against a real server, as a user types them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from cli_server import ROOT, CliServer, environment_without_settings, running_server
from typer.testing import CliRunner, Result

from app import embedded
from app.cli.root import app

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

Run = Callable[[Sequence[str]], Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def run(server: CliServer) -> Run:
    """Run a command against the server."""
    return lambda args: CliRunner().invoke(app, [*args, "--url", server.url])


@pytest.fixture(scope="module")
def served(server: CliServer) -> str:
    """Id of the variant that the server serves from its start."""
    with server.client() as client:
        return str(client.get("/v1/variants").json()["data"][0]["id"])


def test_list_shows_the_embedded_variant_ready(run: Run, served: str) -> None:
    result = run(["list"])

    assert result.exit_code == 0
    assert served in result.stdout
    assert "ready" in result.stdout


def test_list_as_json_is_what_the_api_says(run: Run, server: CliServer, served: str) -> None:
    result = run(["list", "--json"])

    (found,) = [one for one in json.loads(result.stdout) if one["id"] == served]
    assert found["weight_bytes"] == server.variant(served)["weight_bytes"]


def test_load_takes_a_folder_by_its_path_from_here(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(embedded.model_path(), tmp_path / "fox")
    monkeypatch.chdir(tmp_path)

    result = run(["load", "./fox", "--name", "fox"])

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("fox/bf16: ready")
    assert run(["unload", "fox/bf16"]).exit_code == 0


def test_plan_knows_what_is_loaded_and_estimates_the_rest(run: Run, served: str) -> None:
    other = "slimstory/fp16"

    result = run(["plan", served, "slimstory", "--json"])
    estimated = run(["plan", "slimstory", "--dtype", "fp16"])

    assert result.exit_code == 0, result.output
    assert [one["source"] for one in json.loads(result.stdout)["models"]] == ["loaded"]
    assert estimated.exit_code == 0, estimated.output
    assert other in estimated.stdout
    assert estimated.stdout.splitlines()[-1].endswith(": fits")


def test_chat_brings_an_unloaded_variant_back(run: Run, served: str) -> None:
    run(["unload", served])

    result = run(["chat", "Tell me a story.", "--model", served, "--max-tokens", "4"])

    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_chat_with_one_prompt_streams_words(run: Run) -> None:
    result = run(["chat", "Tell me a story about a dog.", "--max-tokens", "40", "--temperature", "0", "--stats"])

    assert result.exit_code == 0, result.output
    assert len(result.stdout.split()) > 10
    assert "40 tokens" in result.stderr


def test_chat_reads_its_prompt_from_a_pipe(server: CliServer) -> None:
    result = CliRunner().invoke(app, ["--url", server.url, "chat", "--max-tokens", "10"], input="Tell me a story.")

    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_same_seed_gives_the_same_answer(run: Run) -> None:
    command = ["chat", "Tell me a story.", "--max-tokens", "30", "--temperature", "1", "--seed", "5"]

    assert run(command).stdout == run(command).stdout


def test_quantize_follows_the_job_and_the_variant_can_be_used(run: Run, served: str) -> None:
    base = served.split("/")[0]

    made = run(["quantize", base, "--method", "int8"])
    assert made.exit_code == 0, made.output
    assert f"{base}/int8" in made.stdout
    assert "KL" in made.stdout

    loaded = run(["load", f"{base}/int8"])
    assert loaded.exit_code == 0, loaded.output
    measured = run(["bench", base, "--runs", "1", "--tokens", "8", "--perplexity-tokens", "256", "--json"])
    assert measured.exit_code == 0, measured.output
    rows = {row["variant"]: row for row in json.loads(measured.stdout)}
    assert set(rows) == {served, f"{base}/int8"}
    assert rows[f"{base}/int8"]["weight_bytes"] < rows[served]["weight_bytes"]
    assert rows[f"{base}/int8"]["perplexity"] == pytest.approx(rows[served]["perplexity"], rel=0.1)

    jobs = json.loads(run(["jobs", "--json"]).stdout)
    assert [job["state"] for job in jobs] == ["succeeded"]
    followed = run(["jobs", jobs[0]["id"], "--follow"])
    assert "succeeded" in followed.stdout
    again = run(["quantize", base, "--method", "int8"])
    assert again.exit_code == 1
    assert "int8" in again.stderr

    unloaded = run(["unload", f"{base}/int8"])
    assert unloaded.stdout.strip() == f"{base}/int8: unloaded", unloaded.output
    assert f"{base}/int8" not in run(["ps"]).stdout


def test_variant_is_deleted_unless_it_is_served(run: Run, served: str) -> None:
    variant = f"{served.partition('/')[0]}/rtn-int4-g32"
    assert run(["quantize", variant.partition("/")[0], "--method", "rtn-int4-g32"]).exit_code == 0
    assert run(["load", variant]).exit_code == 0

    refused, forced, again = run(["rm", variant]), run(["rm", variant, "--force"]), run(["rm", variant])

    assert refused.exit_code == 1
    assert "is loaded" in refused.stderr
    assert (forced.exit_code, forced.stdout.strip()) == (0, f"{variant}: deleted")
    assert again.exit_code == 1
    assert variant in again.stderr
    assert variant not in run(["list"]).stdout


def test_quantize_shows_each_layer_its_errors_and_the_time_left(run: Run, served: str) -> None:
    base = served.partition("/")[0]

    made = run(["quantize", base, "--method", "gptq-int4-g32", "--samples", "4", "--sequence-length", "64"])

    assert made.exit_code == 0, made.output
    lines = re.findall(r"layer (\d+) of (\d+), \S+, error \S+ to \S+, \d+:\d\d:\d\d left$", made.stderr, re.MULTILINE)
    num_layers = int(lines[0][1])
    assert [int(layer) for layer, _ in lines] == list(range(1, num_layers + 1))


def test_measured_and_exported_variant(run: Run, served: str, tmp_path: Path) -> None:
    variant = served.partition("/")[0] + "/exported"
    made = run(["quantize", variant.partition("/")[0], "--name", "exported"])
    assert made.exit_code == 0, made.output

    measured = run(["measure", variant, "--max-tokens", "300", "--streams", "2", "--new-tokens", "4", "--json"])
    compared = run(["compare", variant.partition("/")[0], "--format", "json"])
    advised = run(["recommend", variant.partition("/")[0], "--max-kl", "0.05", "--streams", "2"])
    exported = run(["export", variant, str(tmp_path / "out")])
    again = run(["export", variant, str(tmp_path / "out")])

    assert measured.exit_code == 0, measured.output
    found = json.loads(measured.stdout)
    assert 0 < found["quality"]["kl_mean"] < 0.05
    assert found["speed"]["levels"][0]["tokens_per_s"] > 0
    (row,) = [one for one in json.loads(compared.stdout)["data"] if one["variant"] == variant]
    assert row["kl_mean"] == found["quality"]["kl_mean"]
    assert row["levels"][0]["tokens_per_s"] == found["speed"]["levels"][0]["tokens_per_s"]
    assert advised.exit_code == 0, advised.output
    assert f"1. {variant} (Pareto)" in advised.stdout
    assert exported.exit_code == 0, exported.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"manifest.json", *manifest["files"]}
    assert again.exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_compare_shows_table_and_answers_of_the_loaded_variant(run: Run, served: str) -> None:
    base = served.partition("/")[0]

    shown = run(["compare", base])
    answered = run(["compare", base, "--prompt", "Once upon a time", "--variant", served, "--max-tokens", "5"])

    assert shown.exit_code == 0, shown.output
    assert f"*  {served}" in shown.stdout
    assert "KL" in shown.stdout
    assert answered.exit_code == 0, answered.output
    assert f"{served}: 5 tokens; mean log-probability -" in answered.stdout


def test_bad_option_is_refused_before_anything_runs(run: Run, served: str) -> None:
    result = run(["quantize", served, "--method", "gptq", "--bits", "5"])

    assert result.exit_code == 1
    assert "2, 3, 4, 8" in result.stderr


def test_bits_chosen_within_a_budget(run: Run, served: str) -> None:
    base = served.partition("/")[0]
    shape = ["--group-size", "32", "--samples", "4", "--sequence-length", "64"]
    options = ["--option", "candidate_bits=[3,8]", "--option", "num_windows=1"]
    made = run(["quantize", base, "--method", "auto", "--bits", "3.75", *shape, *options])
    assert made.exit_code == 0, made.output

    shown = run(["jobs", "--json"])

    (job,) = [one for one in json.loads(shown.stdout) if one["method"] == "auto"]
    assert job["variant"] == f"{base}/auto-3.75bits-g32"
    assert {one["num_bits"] for one in job["result"]["allocation"]} == {3, 8}
    assert job["result"]["trials"][0]["kl_mean"] == min(one["kl_mean"] for one in job["result"]["trials"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bits", "1.5", "--group-size", "32"], "below the smallest variant"),
        (["--bits", "4.25", "--quantize-head"], "leave 'quantize_head' out"),
        ([], "takes one budget"),
    ],
    ids=["small", "head", "none"],
)
def test_budget_that_cannot_be_kept_is_refused(run: Run, served: str, arguments: list[str], said: str) -> None:
    result = run(["quantize", served.partition("/")[0], "--method", "auto", *arguments])

    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())


def test_unknown_model_names_the_nearest(run: Run, served: str) -> None:
    result = run(["chat", "hi", "--model", served.replace("story", "stroy")])

    assert result.exit_code == 1
    assert served in result.stderr


def test_bench_times_several_clients_at_once(run: Run, served: str) -> None:
    levels = ["--streams", "3", "--streams", "1"]
    result = run(["bench", served, *levels, "--runs", "2", "--tokens", "4", "--perplexity-tokens", "0", "--json"])

    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["streams"], row["num_requests"]) for row in rows] == [(1, 2), (3, 6)]
    assert all(row["tpot_s"] > 0 and row["tokens_per_s"] > 0 and row["ttft_s"] > 0 for row in rows)
    assert [row["perplexity"] for row in rows] == [None, None]


def test_bench_table_has_a_row_per_level(run: Run, served: str) -> None:
    result = run(["bench", served, "--streams", "1", "--streams", "2", "--runs", "1", "--tokens", "4"])

    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    column = heading.split().index("streams")
    # sizes are two words each: a number and its unit
    assert [row.split()[column + 3] for row in rows] == ["1", "2"]


def test_bench_of_a_prompt_that_does_not_fit_says_what_to_lower(run: Run, served: str) -> None:
    result = run(["bench", served, "--prompt-tokens", "500", "--tokens", "64"])

    assert result.exit_code == 1
    assert "512 tokens; lower --prompt-tokens or --tokens" in result.stderr


def test_bench_of_a_variant_that_is_not_ready_says_how_to_load_it(run: Run) -> None:
    result = run(["bench", "nothing/here"])

    assert result.exit_code == 1
    assert "slimserve load nothing/here" in result.stderr


def test_version_names_the_server_too(run: Run, server: CliServer) -> None:
    result = run(["version"])

    assert result.exit_code == 0, result.output
    assert server.url in result.stdout


def test_second_server_on_the_same_data_exits_with_3(server: CliServer) -> None:
    data_dir = server.log.parent / "data"

    second = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "0", "--data-dir", str(data_dir)],
        cwd=ROOT,
        env=environment_without_settings(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert second.returncode == 3, second.stderr
    assert "in use" in second.stderr


def test_doctor_knows_its_own_server(server: CliServer, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]

    result = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path / "data")], env={"SLIMSERVE_PORT": port})

    assert result.exit_code == 0, result.output
    assert f"127.0.0.1:{port} is used by a slimserve server" in result.stdout


def test_doctor_finds_devices_and_a_writable_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--data-dir", str(tmp_path / "data")], env={"SLIMSERVE_PORT": "0"})

    assert result.exit_code == 0, result.output
    assert "device cpu" in result.stdout
    assert "torch" in result.stdout
