"""Keys, origins and hosts, over ASGI: what is refused before any route is reached."""

from typing import Any

import httpx
import pytest

from app.api.keys import Keys
from app.errors import Forbidden, RateLimited, Unauthorized
from app.main import create_app
from app.settings import Settings


def client(**settings: object) -> httpx.AsyncClient:
    """A client of an application that is not started: nothing here gets that far."""
    transport = httpx.ASGITransport(app=create_app(Settings(**settings)))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer wrong", "Bearer ", "Basic c2VjcmV0", "Bearer ' OR 1=1 --", "Bearer " + "k" * 10_000, "secret"],
)
async def test_without_a_right_key_every_wrong_one_gets_the_same_answer(authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with client(api_keys=("secret", "other")) as http:
        answers = [await http.get(path, headers=headers) for path in ("/v1/nothing", "/metrics", "/v1/models/a/b")]

    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_api_key"}
    assert len({answer.text for answer in answers}) == 1


async def test_any_of_the_keys_opens() -> None:
    async with client(api_keys=("secret", "other")) as http:
        answers = [
            await http.get("/v1/nothing", headers={"authorization": f"Bearer {key}"}) for key in ("secret", "other")
        ]

    assert [answer.status_code for answer in answers] == [404, 404]


async def test_an_empty_key_passes_where_none_is_configured() -> None:
    async with client() as http:
        answer = await http.get("/v1/nothing", headers={"authorization": "Bearer "})

    assert answer.json()["error"]["message"] == "Invalid URL (GET /v1/nothing)"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        pytest.param("http://127.0.0.1", "127.0.0.1", 415, id="same"),
        pytest.param("http://evil.example", "127.0.0.1", 403, id="other"),
        pytest.param("null", "127.0.0.1", 403, id="null"),
        pytest.param("http://rebound.example", "rebound.example", 403, id="rebound-name"),
    ],
)
async def test_pages_of_other_origins_may_not_post(origin: str, host: str, status: int) -> None:
    async with client() as http:
        answer = await http.post("/v1/completions", headers={"origin": origin, "host": host}, content=b"{}")

    assert answer.status_code == status


async def test_request_id_is_kept_if_it_is_one() -> None:
    async with client() as http:
        kept = await http.get("/v1/nothing", headers={"x-request-id": "mine-1"})
        replaced = await http.get("/v1/nothing", headers={"x-request-id": "not\tone"})

    assert kept.headers["x-request-id"] == "mine-1"
    assert replaced.headers["x-request-id"].startswith("req-")


async def test_unexpected_failure_is_an_answer_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async with client() as http:
        # the application has not been started, so this route fails inside
        answer = await http.get("/v1/models")

    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert "state" not in answer.text
    assert "unexpected error" in caplog.text


async def test_strict_servers_refuse_unknown_fields() -> None:
    body = {"model": "a", "prompt": "b", "foo": 1}
    async with client(strict_params=True) as http:
        answer = await http.post("/v1/completions", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unknown_parameter", "foo")


@pytest.mark.parametrize(
    ("settings", "host", "is_let_in"),
    [
        pytest.param({}, "127.0.0.1:8080", True, id="loopback"),
        pytest.param({}, "LocalHost", True, id="name-of-loopback"),
        pytest.param({}, "[::1]:8080", True, id="loopback-v6"),
        pytest.param({}, "host.docker.internal:8080", True, id="docker-desktop"),
        pytest.param({}, "rebound.example", False, id="rebound-name"),
        pytest.param({}, "127.0.0.1.rebound.example:8080", False, id="looks-like-loopback"),
        pytest.param({"host": "127.0.0.9"}, "127.0.0.9:8080", True, id="bound-address"),
        pytest.param({"host": "0.0.0.0"}, "box.example", True, id="public-bind"),
        pytest.param({"api_keys": ("secret",)}, "proxy.example", True, id="with-keys"),
        pytest.param({"allowed_hosts": ("Llm.example",)}, "llm.example:443", True, id="named"),
        pytest.param({"allowed_hosts": ("llm.example",)}, "localhost", True, id="loopback-beside-named"),
        pytest.param({"allowed_hosts": ("llm.example",)}, "a.llm.example", False, id="below-named"),
        pytest.param({"host": "10.0.0.5", "allowed_hosts": ("a.b",)}, "10.0.0.5", True, id="bound-beside-named"),
        pytest.param({"host": "0.0.0.0", "allowed_hosts": ("a.b",)}, "c.d", False, id="public-bind-named"),
        pytest.param({"api_keys": ("secret",), "allowed_hosts": ("a.b",)}, "c.d", False, id="with-keys-named"),
        pytest.param({"allowed_hosts": ("*",)}, "anything.example", True, id="any"),
    ],
)
async def test_only_names_of_this_server_are_let_in(settings: dict[str, Any], host: str, is_let_in: bool) -> None:
    async with client(**settings) as http:
        answer = await http.get("/v1/nothing", headers={"host": host, "authorization": "Bearer secret"})

    code = answer.json()["error"]["code"]
    assert (answer.status_code, code) == ((404, None) if is_let_in else (400, "invalid_host"))
    assert is_let_in or "SLIMSERVE_ALLOWED_HOSTS" in answer.text


async def test_probes_may_call_the_server_by_any_name() -> None:
    async with client(allowed_hosts=("a.b",)) as http:
        # 500: the application is not started, so the route itself fails; the guard has let it pass
        assert (await http.get("/healthz", headers={"host": "10.1.2.3:8080"})).status_code == 500


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/messages/count_tokens", True),
        ("POST", "/v/a/b/v1/completions", True),
        ("GET", "/v1/models/a/b", True),
        ("GET", "/models", True),
        ("POST", "/v1/quantize", False),
        ("POST", "/v1/load", False),
        ("POST", "/models/load", False),
        ("DELETE", "/v1/variants/a/b", False),
        ("GET", "/v1/jobs", False),
        ("GET", "/metrics", False),
        ("GET", "/v1/nothing", False),
        ("POST", "/v1/chat/completions/", False),
    ],
)
async def test_key_for_inference_opens_nothing_else(method: str, path: str, is_open: bool) -> None:
    settings = {"api_keys": ("all",), "inference_keys": ("some",)}
    async with client(**settings) as http:
        answers = [
            await http.request(method, path, headers={"authorization": f"Bearer {key}"}) for key in ("all", "some")
        ]

    assert answers[0].status_code not in (401, 403)
    assert (answers[1].status_code == 403) is not is_open
    assert is_open or answers[1].json()["error"]["code"] == "insufficient_scope"


def test_inference_keys_alone_close_the_server_too() -> None:
    keys = Keys(Settings(inference_keys=("some",)))

    with pytest.raises(Unauthorized):
        keys.check("/v1/completions", {})
    with pytest.raises(Forbidden):
        keys.check("/v1/load", {"authorization": "Bearer some"})


def test_key_that_asks_too_often_waits_as_long_as_it_is_told() -> None:
    now_s = 1000.0
    keys = Keys(Settings(api_keys=("a", "b"), key_requests_per_minute=3), clock=lambda: now_s)
    ask = {"authorization": "Bearer a"}

    for _ in range(3):
        keys.check("/v1/completions", ask)
    with pytest.raises(RateLimited) as caught:
        keys.check("/v1/completions", ask)
    # looking, and other keys, are free
    keys.check("/v1/models", ask)
    keys.check("/v1/completions", {"x-api-key": "b"})
    now_s += int(caught.value.headers["retry-after"])
    keys.check("/v1/completions", ask)

    assert caught.value.headers["retry-after"] == "20"
    assert caught.value.code == "rate_limit_exceeded"
    with pytest.raises(RateLimited):
        keys.check("/v1/completions", ask)
