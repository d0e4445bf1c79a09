"""Comparing, recommending and choosing over HTTP, on the embedded model and an int8 variant of it."""

import asyncio
import csv
from collections.abc import AsyncIterator
from typing import Any

import httpx
import made_reports
import pytest
from app_servers import running_app
from fastapi import FastAPI

from app.core.server import Server
from app.core.variants import Quality
from app.schemas.reports import MeasurementObject
from app.settings import Settings
from app.store import variants
from app.store.variants import VariantRow

NAME = "slimstory"


def speed(tokens_per_s: float, peak_bytes: int) -> MeasurementObject:
    report = made_reports.speed(1, tokens_per_s=tokens_per_s, peak_bytes=peak_bytes)
    return MeasurementObject(environment=made_reports.environment(), speed=report)


def quality(text: str, perplexity: float, kl_mean: float) -> MeasurementObject:
    found = made_reports.quality(text, perplexity, kl_mean=kl_mean)
    return MeasurementObject(environment=made_reports.environment(), quality=found)


async def add_variant(server: Server, name: str, weight_bytes: int, kl_mean: float) -> str:
    """A row without files: enough for what only reads numbers."""
    row = VariantRow(
        id=f"{NAME}/{name}",
        base=NAME,
        method=name,
        kind="compressed",
        dir=name,
        format=name,
        bits=8,
        weight_bytes=weight_bytes,
        disk_bytes=weight_bytes,
        created=1,
    )
    await server.store.run(variants.insert, row)
    server.catalog.published(row, Quality(kl_mean=kl_mean, top1_agreement=0.9))
    return row.id


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with running_app(settings) as (app, client):
        yield app, client


@pytest.fixture
async def compared(served: tuple[FastAPI, httpx.AsyncClient]) -> tuple[Server, httpx.AsyncClient, str, str]:
    """A server, a client of it, and the ids of a base's cast and of an 8-bit variant near it."""
    app, client = served
    server: Server = app.state.server
    return server, client, server.catalog.resolve(NAME).id, await add_variant(server, "int8", 900_000, 0.001)


async def load(client: httpx.AsyncClient, model: str) -> str:
    answer = await client.post("/v1/load", json={"model": model, "wait": True})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_comparison_marks_the_pareto_set_and_says_what_is_missing(
    compared: tuple[Server, httpx.AsyncClient, str, str],
) -> None:
    server, client, base, small = compared
    worse = await add_variant(server, "bad", 950_000, 0.002)
    unmeasured = await add_variant(server, "new", 500_000, 0.5)
    for name, tokens_per_s in ((base, 50.0), (small, 90.0), (worse, 80.0)):
        server.catalog.measured(name, speed(tokens_per_s, 1000))

    found = (await client.get("/v1/compare", params={"base": NAME})).json()

    rows = {row["variant"]: row for row in found["data"]}
    assert {name: row["is_pareto"] for name, row in rows.items()} == {
        base: True,
        small: True,
        worse: False,
        unmeasured: None,
    }
    assert found["pareto"] == [base, small]
    assert found["objectives"] == ["weight_bytes", "kl_mean", "tokens_per_s"]
    assert (rows[base]["kl_mean"], rows[base]["kl_source"]) == (0.0, "is the base")
    assert (rows[small]["kl_mean"], rows[small]["kl_source"]) == (0.001, "verified")
    assert rows[unmeasured]["missing"] == ["quality", "speed"]
    assert rows[small]["missing"] == ["quality"]
    assert rows[base]["bytes_on_disk"] > 1_000_000


async def test_measurement_on_another_text_is_not_put_beside_the_others(
    compared: tuple[Server, httpx.AsyncClient, str, str],
) -> None:
    server, client, base, small = compared
    smaller = await add_variant(server, "int4", 500_000, 0.09)
    for name in (base, small, smaller):
        server.catalog.measured(name, quality("stories", perplexity=5.0, kl_mean=0.0015))
    server.catalog.measured(small, quality("passwords", perplexity=1093.0, kl_mean=0.5))

    found = (await client.get("/v1/compare", params={"base": NAME})).json()

    rows = {row["variant"]: row for row in found["data"]}
    assert (rows[small]["perplexity"], rows[small]["kl_mean"]) == (5.0, 0.0015)
    assert rows[small]["measured_otherwise"] == []

    only_elsewhere = await add_variant(server, "new", 700_000, 0.01)
    server.catalog.measured(only_elsewhere, quality("passwords", perplexity=1093.0, kl_mean=0.5))

    found = (await client.get("/v1/compare", params={"base": NAME})).json()

    row = next(row for row in found["data"] if row["variant"] == only_elsewhere)
    gauges = (await client.get("/metrics")).text
    assert "1093" not in gauges
    assert f'slimserve_variant_perplexity{{variant="{small}"}} 5.0' in gauges
    assert f'slimserve_variant_kl_mean{{variant="{only_elsewhere}"}} 0.01' in gauges
    assert (row["perplexity"], row["kl_mean"], row["kl_source"]) == (None, 0.01, "verified")
    assert (row["missing"], row["measured_otherwise"]) == (["quality", "speed"], ["quality"])


@pytest.mark.parametrize(
    ("params", "accept", "media_type"),
    [
        ({}, "*/*", "application/json"),
        ({}, "text/csv", "text/csv"),
        ({}, "text/html, text/markdown;q=0.9", "text/markdown"),
        ({"format": "json"}, "text/csv", "application/json"),
        ({"format": "csv"}, "application/json", "text/csv"),
        ({"format": "markdown"}, "*/*", "text/markdown"),
    ],
    ids=["default", "accept-csv", "accept-markdown", "format-wins", "format-csv", "format-markdown"],
)
async def test_comparison_comes_in_the_form_asked_for(
    client: httpx.AsyncClient, params: dict[str, str], accept: str, media_type: str
) -> None:
    answer = await client.get("/v1/compare", params={"base": NAME, **params}, headers={"accept": accept})

    assert answer.headers["content-type"].partition(";")[0] == media_type
    if media_type == "text/csv":
        (row,) = csv.DictReader(answer.text.splitlines())
        assert (row["kl_mean"], row["peak_bytes"], row["missing"]) == ("0.0", "", "quality speed")
        assert (row["format"], row["bits"]) in {("bf16", "16"), ("fp32", "32")}
        assert (row["kl_mean_low"], row["measured"], row["measured_otherwise"]) == ("", "", "")
    if media_type == "text/markdown":
        heading, rule, row = answer.text.splitlines()
        assert heading.count("|") == rule.count("|") == row.count("|")


async def test_recommendation_ranks_rejects_and_names_what_is_unmeasured(
    compared: tuple[Server, httpx.AsyncClient, str, str],
) -> None:
    server, client, base, small = compared
    far = await add_variant(server, "nf4", 500_000, 0.3)
    for name, tokens_per_s in ((base, 50.0), (far, 90.0)):
        server.catalog.measured(name, speed(tokens_per_s, 1000))

    found = await post(client, "/v1/recommend", base=NAME, max_kl=0.02, min_tokens_per_s=40)

    assert [(one["rank"], one["variant"]) for one in found["ranked"]] == [(1, base)]
    assert "tokens_per_s at 1 stream 50 >= 40" in found["ranked"][0]["reasons"]
    assert found["rejected"] == [{"variant": far, "reasons": ["kl_mean 0.3 > 0.02"]}]
    assert found["unmeasured"] == [{"variant": small, "missing": ["tokens_per_s at 1 stream"]}]
    assert (await post(client, "/v1/recommend", base=NAME))["constraints"] == {"max_kl": 0.02, "streams": 1}


async def test_base_without_variants_is_told_what_to_make(client: httpx.AsyncClient) -> None:
    found = await post(client, "/v1/recommend", base=NAME)

    assert [one["method"] for one in found["suggestions"]] == ["int8"]


async def test_auto_answers_with_the_best_loaded_variant_and_says_which(
    served: tuple[FastAPI, httpx.AsyncClient],
) -> None:
    app, client = served
    server: Server = app.state.server
    small = await add_variant(server, "int8", 900_000, 0.001)
    before = (await client.get("/v1/auto")).json()["data"][0]
    base = await load(client, NAME)

    said = [
        (await post(client, "/v1/generate", model=f"{NAME}/auto", prompt="Once", max_tokens=2))["model"],
        (await post(client, "/v1/completions", model=f"{NAME}/auto", prompt="Once", max_tokens=2))["model"],
        (
            await post(
                client,
                "/v1/chat/completions",
                model=f"{NAME}/auto",
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=2,
            )
        )["model"],
    ]

    assert before["variant"] == before["best"] == small
    assert said == [base] * 3
    assert (await client.get("/v1/auto")).json()["data"][0]["best"] == small


async def test_stored_constraints_decide_and_outlive_a_restart(settings: Settings) -> None:
    async with running_app(settings) as (app, client):
        base = app.state.server.catalog.resolve(NAME).id
        chosen = await post(client, "/v1/auto", base=NAME, max_kl=0.5, max_memory_bytes=1)
        refused = await client.post("/v1/generate", json={"model": f"{NAME}/auto", "prompt": "a"})
    async with running_app(settings) as (_, client):
        kept = (await client.get("/v1/auto")).json()["data"][0]
        reset = (await client.put("/v1/auto", json={"base": NAME})).json()

    assert (chosen["variant"], chosen["is_default"]) == (None, False)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "no_variant_qualifies"
    assert kept == chosen
    assert (reset["variant"], reset["is_default"], reset["constraints"]["max_kl"]) == (base, True, 0.02)


async def test_side_by_side_scores_each_answer_as_echo_would(served: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = served
    base = await load(client, NAME)
    made = await client.post("/v1/quantize", json={"model": NAME, "method": "rtn-int4-g32", "name": "rough"})
    while (job := (await client.get(f"/v1/jobs/{made.json()['id']}")).json())["finished"] is None:
        await asyncio.sleep(0.05)
    assert job["state"] == "succeeded", job["error"]
    rough = await load(client, f"{NAME}/rough")

    found = await post(client, "/v1/compare/generate", base=NAME, prompt="The dog", max_tokens=40)

    answers = {one["variant"]: one for one in found["data"]}
    assert (found["parent"], found["reference"], set(answers)) == (base, base, {base, rough})
    own, other = answers[base], answers[rough]
    assert own["first_divergence"] is None
    parted = other["first_divergence"]
    assert parted is not None, "four bits of a tiny model change a greedy story"
    assert own["token_ids"][:parted] == other["token_ids"][:parted]
    assert own["token_ids"][parted] != other["token_ids"][parted]
    prompt = (await post(client, "/tokenize", model=base, prompt="The dog"))["tokens"]
    for one in (own, other):
        text = [*prompt, *one["token_ids"]]
        scored = await post(client, "/v1/completions", model=base, prompt=text, max_tokens=0, echo=True, logprobs=0)
        assert one["parent_logprobs"] == scored["choices"][0]["logprobs"]["token_logprobs"][len(prompt) :]
        assert one["parent_logprob_mean"] == pytest.approx(sum(one["parent_logprobs"]) / len(one["token_ids"]))
    assert own["parent_logprobs"][parted] > other["parent_logprobs"][parted], "greedy takes the likeliest"


async def test_time_of_a_load_is_no_part_of_an_answer(served: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = served

    found = await post(client, "/v1/compare/generate", variants=[NAME], prompt="The dog", max_tokens=2)

    load_s = (await client.get(f"/v1/variants/{NAME}")).json()["load_s"]
    (answer,) = found["data"]
    # a load begins with a new process that imports torch: no bound of time, but whether it is in the number
    assert 0 < answer["timings"]["queue_ms"] < 1000 * load_s


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/compare", None, 400, "missing_required_parameter"),
        ("GET", "/v1/compare?base=nothing", None, 404, "base_not_found"),
        ("GET", f"/v1/compare?base={NAME}&streams=0", None, 400, "integer_below_min_value"),
        ("GET", f"/v1/compare?base={NAME}&streams=many", None, 400, "invalid_type"),
        ("GET", f"/v1/compare?base={NAME}&format=xml", None, 400, "invalid_value"),
        ("POST", "/v1/recommend", {"base": "nothing"}, 404, "base_not_found"),
        ("POST", "/v1/recommend", {"base": NAME, "max_kl": -1}, 400, "decimal_below_min_value"),
        ("POST", "/v1/auto", {"base": NAME, "tokens": 1}, 400, "unknown_parameter"),
        ("PUT", "/v1/auto", {}, 400, "missing_required_parameter"),
        ("POST", "/v1/compare/generate", {"base": NAME, "prompt": "a"}, 503, "model_not_loaded"),
        ("POST", "/v1/compare/generate", {"base": "nothing", "prompt": "a"}, 404, "base_not_found"),
        ("POST", "/v1/compare/generate", {"variants": ["no/thing"], "prompt": "a"}, 404, "model_not_found"),
        ("POST", "/v1/generate", {"model": "nothing/auto", "prompt": "a"}, 404, "model_not_found"),
    ],
)
async def test_bad_request_gets_its_code(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None, status: int, code: str
) -> None:
    answer = await client.request(method, path, json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_variants_of_two_bases_cannot_be_compared(served: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = served
    await load(client, "echo")

    answer = await client.post("/v1/compare/generate", json={"variants": [NAME, "echo/echo"], "prompt": "a"})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "variants")
