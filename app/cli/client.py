"""The HTTP client of every command: one base URL, one key, errors as sentences, server-sent events as objects."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.cli.terminal import CommandFailed

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_CONNECT_TIMEOUT_S = 5
# A load that is waited for reads gigabytes before its answer comes.
_READ_TIMEOUT_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One server-sent event; `event` is "message" where the server names none."""

    event: str = "message"
    id: str | None = None
    data: str = ""

    def json(self) -> Any:
        """The data as JSON."""
        return json.loads(self.data)


def parse_events(lines: Iterable[str]) -> Iterator[Event]:
    """Events from the lines of a text/event-stream; comments such as `: ping` are passed over."""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield Event(event=fields.get("event", "message"), id=fields.get("id"), data="\n".join(data))
            fields, data = {}, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value


class Client:
    """Talks to one server. Everything that goes wrong becomes a CommandFailed with a sentence for the user."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        # `serve` prints it with /v1 too, for OpenAI's clients
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(f"--url is {url!r}; it must look like http://127.0.0.1:8080", exit_code=2)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON answer of a GET."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of a POST; fields that are None are not sent."""
        return self._call("POST", path, body)

    def delete(self, path: str) -> Any:
        """The JSON answer of a DELETE."""
        return self._call("DELETE", path)

    def download(self, path: str, **query: str) -> Iterator[bytes]:
        """The bytes of a GET, in pieces."""
        with self._failures(), self._http.stream("GET", path, params=query) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield from response.iter_bytes()

    def is_ready(self) -> bool:
        """Whether a server answers and takes requests; never raises."""
        try:
            return self._http.get("/readyz", timeout=_CONNECT_TIMEOUT_S).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def is_slimserve(self) -> bool:
        """Whether what answers is a slimserve server, whatever its state and its keys; never raises."""
        try:
            answer = self._http.get("/healthz", timeout=_CONNECT_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        # many servers have a /healthz; the ids of requests are of our own form
        return str(answer.headers.get("x-request-id")).startswith("req-")

    def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, last_event_id: str | None = None
    ) -> Iterator[Event]:
        """The events of a stream, until the server ends it."""
        headers = {"accept": "text/event-stream"}
        if last_event_id is not None:
            headers["last-event-id"] = last_event_id
        with (
            self._failures(),
            self._http.stream(method, path, json=_without_none(body), headers=headers) as response,
        ):
            if response.is_error:
                response.read()
                raise _refusal(response)
            yield from parse_events(response.iter_lines())

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._failures():
            response = self._http.request(method, path, json=_without_none(body))
        if response.is_error:
            raise _refusal(response)
        return response.json()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CommandFailed(
                f"no slimserve server answers at {self.url}; start one with `slimserve serve`, "
                "or name another with --url or SLIMSERVE_URL"
            ) from error
        except httpx.HTTPError as error:
            raise CommandFailed(f"the connection to {self.url} broke: {error}") from error


def url_of(host: str, port: int) -> str:
    """The base URL of a server on this address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _without_none(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if body is None else {name: value for name, value in body.items() if value is not None}


def _refusal(response: httpx.Response) -> CommandFailed:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code} without a slimserve error; is it a slimserve server?"
    return CommandFailed(str(message))
