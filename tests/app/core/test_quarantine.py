"""Variants that are made and are not good enough, and measurements of those that are, on a real server."""

import asyncio
import json
from pathlib import Path

import pytest
from app_servers import LOAD_TIMEOUT_S, echo_settings, running_app, running_server

from app.core.compress_request import resolve_spec
from app.core.load_request import LoadRequest
from app.errors import Conflict, InvalidRequest
from app.schemas.jobs import QuantizeBody


async def test_bad_variant_is_quarantined_until_it_is_deleted(tmp_path: Path) -> None:
    """max_kl below what rounding costs makes a good file a bad one."""
    settings = echo_settings(tmp_path)
    async with running_server(settings) as server:
        body = QuantizeBody(model="slimstory", method="int8", name="bad", max_kl=1e-9)
        job = await server.jobs.submit(resolve_spec(body, server.catalog, settings), None)
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            while (found := await server.jobs.get(job.id)).finished is None:
                await asyncio.sleep(0.05)
        assert found.error is not None
        assert (found.state, found.error.code) == ("failed", "verification_failed")

    async with running_server(settings) as server:
        variant = server.catalog.resolve("slimstory/bad")
        assert variant.state == "quarantined"
        assert variant.reason is not None
        assert "nats per token" in variant.reason
        assert (tmp_path / "quarantine" / job.id / "manifest.json").is_file()
        assert [*(tmp_path / "variants").iterdir()] == []
        with pytest.raises(Conflict) as refused:
            await server.loader.load(LoadRequest(model="slimstory/bad"), wait=True)
        assert refused.value.code == "variant_quarantined"
        with pytest.raises(Conflict):
            server.catalog.acquire("slimstory/bad")

        await server.catalog.delete("slimstory/bad", force=False)

        assert server.catalog.find("slimstory/bad") is None
        assert not (tmp_path / "quarantine" / job.id).exists()


async def test_measurement_is_stored_and_shown_with_its_variant(tmp_path: Path) -> None:
    settings = echo_settings(tmp_path)
    body = {"model": "slimstory", "max_tokens": 400, "window": 128, "stride": 64, "speed": False}
    async with running_app(settings) as (_, client):
        accepted = await client.post("/v1/measure", json=body)
        assert accepted.status_code == 202, accepted.text
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            while (found := (await client.get(accepted.headers["location"])).json())["finished"] is None:
                await asyncio.sleep(0.05)
        assert (found["kind"], found["state"]) == ("measure", "succeeded"), found["error"]
        reports = (await client.get("/v1/reports")).json()["data"]

    async with running_app(settings) as (_, client):
        variant = (await client.get("/v1/variants/slimstory")).json()

    measured = variant["quality"]["measured"]
    assert measured == found["result"]["quality"]
    assert [(report["variant"], report["kind"]) for report in reports] == [(variant["id"], "measure")]
    assert json.dumps(reports[0]["values"], sort_keys=True) == json.dumps(measured, sort_keys=True)
    # The base in its own dtype is no distance from itself; its model card says 4.53 for the whole text.
    assert abs(measured["kl_mean"]) < 1e-6
    assert 3 < measured["perplexity"] < 7
    assert (measured["num_tokens"], measured["stride"], measured["top_k"]) == (399, 64, 128)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"method": "gptq", "options": {"group_size": 96}}, "options.group_size"),
        ({"method": "rtn", "calibration": {"text": "abc"}}, "calibration"),
        ({"method": "gptq", "calibration": {"source": "file"}}, "calibration.path"),
        ({"method": "gptq", "calibration": {"text": "a", "source": "default"}}, "calibration.text"),
        ({"method": "gptq", "calibration": {"path": "/no/such/file"}}, "calibration.path"),
        ({"method": "int8", "layout": "awq"}, "layout"),
        ({"method": "rtn", "overrides": [{"pattern": "*", "method": "int9"}]}, "overrides[0].method"),
        (
            {"method": "rtn", "overrides": [{"pattern": "*", "method": None, "options": {"a": 1}}]},
            "overrides[0].options",
        ),
    ],
    ids=["groups", "no-data", "no-path", "both", "no-file", "layout", "override", "options-alone"],
)
async def test_impossible_compression_is_refused_by_field(
    tmp_path: Path, fields: dict[str, object], param: str
) -> None:
    async with running_server(echo_settings(tmp_path)) as server:
        body = QuantizeBody.model_validate({"model": "slimstory", **fields})

        with pytest.raises(InvalidRequest) as refused:
            resolve_spec(body, server.catalog, server.settings)

    assert refused.value.param == param


async def test_variant_is_named_after_its_recipe_and_calibrates_where_it_must(tmp_path: Path) -> None:
    async with running_server(echo_settings(tmp_path)) as server:
        gptq = QuantizeBody(model="slimstory", method="gptq-int3-g64")
        rtn = QuantizeBody(model="slimstory", method="rtn", options={"num_bits": 8, "group_size": -1})

        calibrated, plain = (resolve_spec(body, server.catalog, server.settings) for body in (gptq, rtn))

    assert (calibrated.variant, calibrated.method) == ("slimstory/gptq-int3-g64", "gptq")
    assert calibrated.calibration is not None
    assert (plain.variant, plain.calibration) == ("slimstory/rtn-int8-channel", None)
    assert plain.max_kl < calibrated.max_kl
