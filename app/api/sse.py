"""Server-sent events: one writer for every stream, whatever its chunks look like.

The status is sent with the first token, so that early errors keep a real status; the ending (OpenAI's `data: [DONE]`)
is sent if and only if every choice has ended by itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.attended import run_attended
from app.api.guard import TRANSPORT
from app.core.choice import Delta
from app.core.generation import Generation, Run
from app.core.request import GenerationRequest
from app.errors import ApiError, Unavailable
from app.settings import Settings

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S: Final = 30
ABORT_NOTICE_S: Final = 5
PING: Final = b": ping\n\n"
DONE: Final = b"data: [DONE]\n\n"
HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the stream before it passes it on
    (b"x-accel-buffering", b"no"),
)
_encode = msgspec.json.Encoder().encode
# Line ends to clients that split decoded text into lines; JSON leaves them as they are.
_LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def json_string(text: str) -> str:
    """The text as a JSON string that no client splits into lines."""
    encoded = _encode(text).decode()
    return encoded if encoded.isascii() else encoded.translate(_LINE_ENDS)


def event(data: object) -> bytes:
    """One event whose data is this value as JSON."""
    encoded = _encode(data).decode()
    return f"data: {encoded if encoded.isascii() else encoded.translate(_LINE_ENDS)}\n\n".encode()


def named_event(name: str, data: object) -> str:
    """One event with a name, for APIs whose clients tell events apart by it."""
    return f"event: {name}\n{event(data).decode()}"


def _openai_error(error: ApiError) -> bytes:
    return event(error.body())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an API's streams end. done: follows the last event of a complete one. error: the last event of others."""

    done: bytes = DONE
    error: Callable[[ApiError], bytes] = _openai_error


OPENAI: Final = Ending()


class Chunks(Protocol):
    """How one route writes its events."""

    def begin(self, run: Run) -> None:
        """Called once, before the first chunk."""
        ...

    def chunk(self, delta: Delta) -> str:
        """The events of one delta; empty if it has nothing to show."""
        ...

    def end(self) -> str:
        """What follows the last delta, before the ending."""
        ...


class EventStream(Response):
    """The answer of a streamed generation; running it is running the request."""

    def __init__(
        self,
        generation: Generation,
        request: GenerationRequest,
        chunks: Chunks,
        settings: Settings,
        ending: Ending = OPENAI,
    ) -> None:
        super().__init__()
        self._ending = ending
        self._generation = generation
        self._request = request
        self._chunks = chunks
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the end or until the client leaves. Raises ApiError only while nothing has been sent."""
        writer = EventWriter(scope, send, self._ending)
        try:
            await run_attended(receive, self._serve(writer))
        except ClientDisconnect:
            logger.debug("a reader left its stream", extra={"request_id": scope.get("slimserve.request_id")})
        except asyncio.CancelledError:
            # the server has waited long enough for its streams to end; nobody else cancels them
            await writer.fail(Unavailable("The server is stopping.", retry_after_s=30, code="server_shutting_down"))
            raise

    async def _serve(self, writer: "EventWriter") -> None:
        try:
            async with self._generation.run(self._request) as run:
                deltas = await self._first(run)
                self._chunks.begin(run)
                await writer.start()
                await self._pass_on(run, deltas, writer)
        except ApiError as error:
            # caught out here, so that the run sees it and counts the request as failed
            if not writer.is_open:
                raise
            await writer.fail(error)

    async def _first(self, run: Run) -> list[Delta]:
        """Wait for a token, whether it has text or not; not for ever, so that the client sees a status."""
        until_s = time.monotonic() + self._settings.first_token_wait_s
        deltas: list[Delta] = []
        while not run.num_completion_tokens and not run.is_finished and (left_s := until_s - time.monotonic()) > 0:
            deltas += await run.next(left_s)
        return deltas

    async def _pass_on(self, run: Run, deltas: list[Delta], writer: "EventWriter") -> None:
        chunk = self._chunks.chunk
        ping_interval_s = self._settings.ping_interval_s
        while True:
            events = "".join([chunk(delta) for delta in deltas])
            if run.is_finished:
                await writer.end((events + self._chunks.end()).encode() + self._ending.done)
                return
            if events:
                await writer.write(events.encode())
            elif writer.silent_s() >= ping_interval_s:
                await writer.write(PING)
            deltas = await run.next(max(0.0, ping_interval_s - writer.silent_s()))


class EventWriter:
    """Sends bytes of one stream. A reader that takes nothing for 30 s is cut off; nobody else waits for it."""

    def __init__(self, scope: Scope, send: Send, ending: Ending = OPENAI) -> None:
        self._ending = ending
        self._scope = scope
        self._send = send
        self._wrote_at_s = time.monotonic()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """True from the status to the last event."""
        return self._is_open

    async def start(self) -> None:
        """The status and the headers."""
        self._is_open = True
        await self._send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})

    async def write(self, data: bytes) -> None:
        """Whole events, in one go."""
        await self._send_in_time({"type": "http.response.body", "body": data, "more_body": True})
        self._wrote_at_s = time.monotonic()

    async def end(self, data: bytes) -> None:
        """The last events, and the clean end of the answer."""
        self._is_open = False
        await self._send_in_time({"type": "http.response.body", "body": data, "more_body": False})

    async def fail(self, error: ApiError) -> None:
        """End with an error event, if the answer has begun and has not ended yet."""
        if self._is_open:
            await self.end(self._ending.error(error))

    def silent_s(self) -> float:
        """Since the last event."""
        return time.monotonic() - self._wrote_at_s

    async def _send_in_time(self, message: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._send(message)
        except TimeoutError:
            logger.warning("a reader took nothing for %d s and was cut off", SEND_TIMEOUT_S)
            if self._scope.get(TRANSPORT) is not None:
                self._scope[TRANSPORT].abort()
                # whoever watches for the disconnect cancels this wait at once: as if the reader had left by itself
                await asyncio.sleep(ABORT_NOTICE_S)
            raise ClientDisconnect from None
