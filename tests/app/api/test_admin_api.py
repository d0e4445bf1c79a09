"""The administrative routes over ASGI: statuses, shapes, refusals. Nothing here waits for a model."""

import shutil
from pathlib import Path

import httpx
import pytest
from app_servers import LONG_JOB

from app import embedded


async def test_load_answers_202_while_it_loads_and_unload_gives_the_variant_back(client: httpx.AsyncClient) -> None:
    loading = await client.post("/v1/load", json={"model": "slimstory", "dtype": "fp32"})
    unloaded = await client.post("/v1/unload", json={"model": "slimstory/fp32", "force": True})

    assert loading.status_code == 202
    assert (loading.json()["id"], loading.json()["object"], loading.json()["state"]) == (
        "slimstory/fp32",
        "variant",
        "loading",
    )
    assert loading.json()["estimated_bytes"] > 2 * 6_500_000
    assert loading.json()["weight_bytes"] is None
    assert unloaded.status_code == 200
    assert unloaded.json()["state"] == "registered"


async def test_base_is_registered_without_being_loaded(client: httpx.AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(embedded.model_path(), folder)

    made = await client.post("/v1/bases", json={"model": str(folder), "name": "mine"})
    again = await client.post("/v1/bases", json={"model": str(folder)})
    missing = await client.post("/v1/bases", json={"model": str(tmp_path / "none")})

    assert (made.status_code, made.json()["id"], made.json()["object"]) == (200, "mine", "base")
    assert again.json() == made.json()
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "base_not_found")
    listed = (await client.get("/v1/bases")).json()["data"]
    assert [base["id"] for base in listed] == ["slimstory", "mine"]
    variants = (await client.get("/v1/variants")).json()["data"]
    assert not [variant for variant in variants if variant["base"] == "mine"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/load", {"model": "slimstori"}, 404, "model_not_found", "model"),
        ("/v1/load", {"model": "slimstory", "dtype": "int3"}, 400, None, "dtype"),
        ("/v1/load", {"model": "slimstory", "surprise": 1}, 400, "unknown_parameter", "surprise"),
        ("/v1/load", {"model": "slimstory", "max_model_len": 0}, 400, None, "max_model_len"),
        ("/v1/load", {}, 400, None, "model"),
        ("/v1/load", {"model": "slimstory/fp32", "dtype": "bf16"}, 404, "model_not_found", "model"),
        ("/v1/unload", {"model": "nobody"}, 404, "model_not_found", "model"),
        ("/v1/quantize", {"model": "slimstory", "method": "int3"}, 400, None, "method"),
        ("/v1/quantize", {"model": "nobody", "method": "int8"}, 404, "base_not_found", "model"),
        ("/v1/quantize", {"model": "slimstory", "method": "int8", "seed": -1}, 400, None, "seed"),
        ("/v1/quantize", {"model": "slimstory", "method": "int8", "bits": 3}, 400, "unknown_parameter", "bits"),
    ],
)
async def test_bad_body_is_refused_in_openai_s_shape(
    client: httpx.AsyncClient, path: str, body: dict[str, object], status: int, code: str | None, param: str
) -> None:
    answer = await client.post(path, json=body)

    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])
    assert set(error) == {"message", "type", "param", "code"}


async def test_quantize_answers_202_with_the_job_and_its_events_end_with_it(client: httpx.AsyncClient) -> None:
    body = {"model": "slimstory", "name": "mine", "skip": ["*lm_head"], **LONG_JOB}

    accepted = await client.post("/v1/quantize", json=body, headers={"idempotency-key": "k"})
    again = await client.post("/v1/quantize", json=body, headers={"idempotency-key": "k"})
    job_url = accepted.headers["location"]
    cancelled = await client.post(f"{job_url}/cancel", json={})
    events = await client.get(f"{job_url}/events")
    resumed = await client.get(f"{job_url}/events", headers={"last-event-id": "1"})
    listed = await client.get("/v1/jobs")

    assert (accepted.status_code, again.status_code) == (202, 202)
    assert accepted.json()["id"] == again.json()["id"]
    assert (accepted.json()["variant"], accepted.json()["kind"]) == ("slimstory/mine", "quantize")
    assert cancelled.json()["state"] == "cancelled"
    assert events.headers["content-type"].startswith("text/event-stream")
    first, *_, last = events.text.strip().split("\n\n")
    assert first.startswith("id: 1\nevent: state\ndata: {")
    assert '"state":"cancelled"' in last
    assert resumed.text == events.text.removeprefix(first + "\n\n")
    assert [job["id"] for job in listed.json()["data"]] == [accepted.json()["id"]]


async def test_newest_jobs_come_first_and_limit_counts_those_that_have_ended(client: httpx.AsyncClient) -> None:
    bodies = [{"model": "slimstory", "name": name, **LONG_JOB} for name in ("one", "two", "three")]
    made = [(await client.post("/v1/quantize", json=body)).json()["id"] for body in bodies]

    for job in made[:2]:
        await client.post(f"/v1/jobs/{job}/cancel", json={})

    newest = await client.get("/v1/jobs", params={"limit": 1})
    refused = await client.get("/v1/jobs", params={"limit": -1})

    assert [job["id"] for job in newest.json()["data"]] == [made[2], made[1]]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


@pytest.mark.parametrize("path", ["/v1/jobs/nothing", "/v1/jobs/nothing/events"])
async def test_unknown_job_is_404(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("value", ["x", "-1", "1" * 20])
async def test_last_event_id_that_is_no_number_is_refused(client: httpx.AsyncClient, value: str) -> None:
    answer = await client.get("/v1/jobs/nothing/events", headers={"last-event-id": value})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_registry_lists_variants_and_bases(client: httpx.AsyncClient) -> None:
    variants = (await client.get("/v1/variants")).json()
    bases = (await client.get("/v1/bases")).json()
    one = (await client.get(f"/v1/variants/{variants['data'][0]['id']}")).json()

    assert variants["object"] == bases["object"] == "list"
    assert one == variants["data"][0]
    assert one["base"] == "slimstory"
    assert [base["id"] for base in bases["data"]] == ["slimstory"]
    assert bases["data"][0]["weight_bytes"] > 0


async def test_embedded_model_cannot_be_deleted(client: httpx.AsyncClient) -> None:
    variant_id = (await client.get("/v1/variants/slimstory")).json()["id"]

    answer = await client.delete(f"/v1/variants/{variant_id}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "variant_protected")


async def test_operations_answer_without_a_model(client: httpx.AsyncClient) -> None:
    answers = {path: await client.get(path) for path in ("/healthz", "/readyz", "/health", "/version")}

    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert answers["/version"].json()["version"]
    assert (await client.head("/healthz")).status_code == 200
