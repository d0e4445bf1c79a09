import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from starlette.types import Receive, Scope, Send

from app.cli import http_server
from app.cli.http_server import MAX_HEAD_BYTES, MAX_HEADERS, DrainingServer, bind, configure

Reply = tuple[int, dict[str, object]]
# Milliseconds alone, seconds on a crowded machine.
PATIENCE_S = 60


class SlowApp:
    """Answers /slow after `release`, everything else at once."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            self.started.set()
            await self.release.wait()
        body = b'{"ok": true}'
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """One server on a free port, and what it told its hooks."""

    def __init__(self) -> None:
        self.app = SlowApp()
        self.heard: list[str] = []
        self.listening = asyncio.Event()
        self.sock = bind("127.0.0.1", 0)
        self.port: int = self.sock.getsockname()[1]
        self.server = DrainingServer(
            configure(self.app, drain_timeout_s=PATIENCE_S),
            on_listening=self.listening.set,
            on_drain=lambda: self.heard.append("drain"),
        )

    async def exchange(self, data: bytes) -> Reply:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            return await read_reply(reader)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        return int(head.split()[1]), json.loads(await reader.readexactly(length))


@asynccontextmanager
async def served() -> AsyncIterator[Running]:
    """A running server, stopped at the end."""
    found = Running()
    task = asyncio.create_task(found.server.serve([found.sock]))
    await asyncio.wait_for(found.listening.wait(), PATIENCE_S)
    yield found
    found.app.release.set()
    found.server.should_exit = True
    await asyncio.wait_for(task, PATIENCE_S)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with served() as found:
        yield found


def get(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


def code_of(reply: Reply) -> object:
    error = reply[1]["error"]
    assert isinstance(error, dict)
    return error["code"]


async def test_ordinary_requests_share_a_connection(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

    replies = []
    for _ in range(3):
        writer.write(get("/", "x-filler: " + "a" * (MAX_HEAD_BYTES // 2)))
        replies.append(await read_reply(reader))

    writer.close()
    await writer.wait_closed()
    assert [status for status, _ in replies] == [200, 200, 200]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(lambda: get("/", "x-filler: " + "a" * MAX_HEAD_BYTES), id="one-long-header"),
        pytest.param(lambda: get("/" + "a" * MAX_HEAD_BYTES), id="long-url"),
        pytest.param(lambda: get("/", *(f"x-{number}: 1" for number in range(MAX_HEADERS))), id="many-headers"),
    ],
)
async def test_head_over_the_limit_gets_431(running: Running, head: Callable[[], bytes]) -> None:
    reply = await running.exchange(head())

    assert (reply[0], code_of(reply)) == (431, "headers_too_large")


async def test_head_without_end_is_refused_before_it_ends(running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

    writer.write(b"GET / HTTP/1.1\r\nx-filler: " + b"a" * MAX_HEAD_BYTES)
    reply = await read_reply(reader)
    writer.close()

    assert (reply[0], code_of(reply)) == (431, "headers_too_large")


@pytest.mark.parametrize("begin", [b"", get()], ids=["first", "after-another"])
async def test_head_that_takes_too_long_gets_408(
    running: Running, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

    writer.write(begin + b"GET / HTTP/1.1\r\nhost: loc")
    replies = [await read_reply(reader) for _ in range(1 + bool(begin))]

    assert (replies[-1][0], code_of(replies[-1])) == (408, "request_timeout")
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", get("/", "content-length: 10")], ids=["nothing", "blanks", "body-of-an-answered-request"]
)
async def test_connection_that_owes_bytes_and_is_silent_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SILENCE_TIMEOUT_S", 0.05)
    async with served() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

        writer.write(sent)
        if b"GET" in sent:
            assert (await read_reply(reader))[0] == 200
            writer.write(b"{")

        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_late_head_does_not_write_into_the_answer_before_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)

    writer.write(get("/slow") + b"GET / HT")
    await asyncio.wait_for(running.app.started.wait(), 10)
    # the head is late in each of these turns
    for _ in range(100):
        await asyncio.sleep(0)
    running.app.release.set()

    assert (await read_reply(reader))[0] == 200
    assert (await read_reply(reader))[0] == 408
    writer.close()


async def test_what_is_no_http_gets_400_in_the_shape_of_an_error(running: Running) -> None:
    reply = await running.exchange(b"\x16\x03\x01 this is no request\r\n\r\n")

    assert (reply[0], code_of(reply)) == (400, "invalid_http")


async def test_first_signal_drains_and_lets_a_request_finish(running: Running) -> None:
    answer = asyncio.create_task(running.exchange(get("/slow")))
    await asyncio.wait_for(running.app.started.wait(), PATIENCE_S)

    running.server.handle_exit(signal.SIGTERM, None)
    heard_at_once = list(running.heard)
    running.app.release.set()

    assert heard_at_once == ["drain"]
    assert (await answer)[0] == 200
    assert not running.server.force_exit


async def test_second_signal_stops_without_waiting(running: Running) -> None:
    running.server.handle_exit(signal.SIGTERM, None)
    running.server.handle_exit(signal.SIGTERM, None)

    assert running.server.force_exit
    assert running.heard == ["drain"]


def test_binding_a_port_in_use_raises() -> None:
    first = bind("127.0.0.1", 0)

    with pytest.raises(OSError, match="in use"):
        bind("127.0.0.1", first.getsockname()[1])

    first.close()
