"""POST /v1/models/plan, and the load options that decide what stays, over ASGI."""

import httpx
import pytest


async def test_plan_of_a_base_is_an_estimate_and_loads_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/models/plan", json={"models": ["slimstory"], "dtype": "fp16"})

    plan = answer.json()
    assert answer.status_code == 200
    assert (plan["object"], plan["fits"], plan["evicts"], plan["reason"]) == ("plan", True, [], None)
    (model,) = plan["models"]
    assert (model["id"], model["source"], model["state"]) == ("slimstory/fp16", "estimated", "registered")
    assert 0 < model["needed_bytes"] == plan["needed_bytes"] < plan["free_bytes"]
    variants = (await client.get("/v1/variants")).json()["data"]
    assert "slimstory/fp16" not in [one["id"] for one in variants]


async def test_plan_of_too_much_gives_the_reason(client: httpx.AsyncClient) -> None:
    plan = (await client.post("/v1/models/plan", json={"models": ["slimstory"], "kv_cache_bytes": 2**44})).json()

    assert (plan["fits"], plan["evicts"]) == (False, [])
    assert f"{plan['needed_bytes']:,}" in plan["reason"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/models/plan", {}, 400, "missing_required_parameter", "models"),
        ("/v1/models/plan", {"models": []}, 400, "empty_array", "models"),
        ("/v1/models/plan", {"models": "slimstory"}, 400, "invalid_type", "models"),
        ("/v1/models/plan", {"models": ["slimstory"], "evict": True}, 400, "unknown_parameter", "evict"),
        ("/v1/models/plan", {"models": ["nobody"]}, 404, "model_not_found", "models[0]"),
        ("/v1/models/plan", {"models": ["slimstory", "a/b"]}, 404, "model_not_found", "models[1]"),
        ("/v1/load", {"model": "slimstory", "pin": "yes"}, 400, "invalid_type", "pin"),
        ("/v1/load", {"model": "slimstory", "idle_unload_s": -1}, 400, "decimal_below_min_value", "idle_unload_s"),
        ("/v1/load", {"model": "slimstory", "idle_unload_s": 5, "pin": True}, 400, "invalid_value", "idle_unload_s"),
    ],
)
async def test_bad_body_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, object], status: int, code: str, param: str
) -> None:
    answer = await client.post(path, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
