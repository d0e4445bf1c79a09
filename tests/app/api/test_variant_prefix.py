"""`/v/{variant}/...`: the same routes for clients that name no model."""

from typing import Any

import httpx
import pytest
from sse_reading import chat, completion, stream

PREFIX = "/v/echo/main"


def without_model(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "model"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(seed=1)),
        ("/v1/completions", completion()),
        ("/tokenize", {"prompt": "The dog", "add_special_tokens": False}),
        ("/detokenize", {"tokens": [5, 6]}),
    ],
)
async def test_body_needs_no_model_below_the_prefix(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    named = await http.post(path, json={**body, "model": "echo/main"})
    unnamed = await http.post(PREFIX + path, json=without_model(body))

    assert unnamed.status_code == 200, unnamed.text
    for key in named.json().keys() & {"choices", "tokens", "prompt"}:
        assert unnamed.json()[key] == named.json()[key]


async def test_model_of_the_path_wins_over_the_one_of_the_body(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, f"{PREFIX}/v1/completions", completion(model="gpt-5"))

    assert {chunk["model"] for chunk in chunks} == {"echo/main"}


async def test_models_below_the_prefix_are_that_variant(http: httpx.AsyncClient) -> None:
    listed = (await http.get(f"{PREFIX}/v1/models")).json()["data"]
    by_base = (await http.get("/v/slimstory/v1/models")).json()["data"]
    one = (await http.get(f"{PREFIX}/v1/models/echo/main")).json()

    assert [item["id"] for item in listed] == ["echo/main"] == [one["id"]]
    assert [item["parent"] for item in by_base] == ["slimstory"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/v/nobody/v1/models", 404, "model_not_found", id="unknown-variant"),
        pytest.param("POST", "/v/no/body/v1/completions", 404, "model_not_found", id="unknown-variant-post"),
        pytest.param("POST", "/v/echo/main/v1/load", 404, None, id="not-an-inference-route"),
        pytest.param("POST", "/v//v1/completions", 404, None, id="empty-name"),
        pytest.param("GET", "/v/echo/main/v1/completions", 405, "method_not_supported", id="method"),
    ],
)
async def test_wrong_prefix_is_an_error_of_the_usual_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int, code: str | None
) -> None:
    answer = await http.request(method, path, json={"prompt": "x"} if method == "POST" else None)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_tokenizer_info_tells_what_a_client_needs_to_do_without_a_tokenizer(http: httpx.AsyncClient) -> None:
    below_prefix = (await http.get(f"{PREFIX}/tokenizer_info")).json()
    by_query = (await http.get("/tokenizer_info", params={"model": "echo/main"})).json()
    only_ready = (await http.get("/tokenizer_info")).json()

    assert below_prefix == by_query == only_ready
    assert below_prefix.keys() >= {"bos_token", "eos_token", "pad_token", "chat_template"}
    assert below_prefix["eos_token"]
    assert "messages" in below_prefix["chat_template"]
    assert below_prefix["max_model_len"] == 4096


async def test_tokenizer_info_of_an_unloaded_server_wants_a_model(client: httpx.AsyncClient) -> None:
    unnamed = await client.get("/tokenizer_info")
    named = await client.get("/tokenizer_info", params={"model": "slimstory"})

    error = unnamed.json()["error"]
    assert (unnamed.status_code, error["code"], error["param"]) == (400, "missing_required_parameter", "model")
    assert (named.status_code, named.json()["model"].partition("/")[0]) == (200, "slimstory")
