"""What holds a stream together: readers that leave, readers that stall, ends that are ends."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api import sse
from app.api.attended import run_attended
from app.api.guard import TRANSPORT
from app.api.sse import EventWriter
from app.errors import WorkerCrashed


class Transport:
    """Remembers that it was cut."""

    is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class Client:
    """The other side of an ASGI connection: it leaves when `left` is set."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.received: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.received.append(message)


async def test_work_ends_when_its_client_leaves() -> None:
    client, was_cancelled = Client(), False

    async def work() -> None:
        nonlocal was_cancelled
        client.left.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            was_cancelled = True
            raise

    with pytest.raises(ClientDisconnect):
        await run_attended(client.receive, work())

    assert was_cancelled
    # nothing of the cancellation is left behind
    await asyncio.sleep(0)


async def test_work_that_is_done_gives_its_result() -> None:
    client = Client()

    assert await run_attended(client.receive, asyncio.sleep(0, result=5)) == 5

    client.left.set()
    await asyncio.sleep(0.01)


async def test_cancellation_from_elsewhere_stays_one() -> None:
    task = asyncio.create_task(run_attended(Client().receive, asyncio.sleep(60)))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_S", 0.05)
    monkeypatch.setattr(sse, "ABORT_NOTICE_S", 0.05)
    transport = Transport()

    async def stalled(message: Any) -> None:
        await asyncio.sleep(60)

    with pytest.raises(ClientDisconnect):
        await EventWriter({TRANSPORT: transport}, stalled).write(b"data: x\n\n")

    assert transport.is_aborted


async def test_error_is_the_last_event_and_comes_once_at_most() -> None:
    client = Client()
    writer = EventWriter({}, client.send)

    await writer.fail(WorkerCrashed("too early: nothing has begun"))
    await writer.start()
    await writer.fail(WorkerCrashed("it died"))
    await writer.fail(WorkerCrashed("again"))

    assert [message["type"] for message in client.received] == ["http.response.start", "http.response.body"]
    assert b'"code":"worker_crashed"' in client.received[1]["body"]
    assert client.received[1]["more_body"] is False


@pytest.mark.parametrize("text", ["a\u2028b\u2029c\u0085d", 'quote " and \\', "line\r\nend\x0b\x0c\x1c\x1d\x1e", "😀é"])
def test_json_strings_are_one_line_for_every_client(text: str) -> None:
    encoded = sse.json_string(text)

    assert len(encoded.splitlines()) == 1
    assert sse.msgspec.json.decode(encoded.encode()) == text
