"""The uvicorn server that `slimserve serve` runs: bounded request heads, and a stop that drains.

uvicorn itself puts no limit on the size of a request's head with httptools, and none on the time that it takes: a
client could grow it without end, or hold a thousand sockets open with a byte each.
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 100
_MAX_PIPELINED = 8
# From a head's first byte to its last, and for a connection that owes the next byte of anything else.
HEAD_TIMEOUT_S = 10.0
SILENCE_TIMEOUT_S = 30.0
_KEEP_ALIVE_S = 75
_KILLED_BY_USER = 130

Hook = Callable[[], None]


class _HeadTooLarge(Exception):
    """Carries no message: the answer is always the same."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request heads are at most MAX_HEAD_BYTES and MAX_HEADERS; errors have OpenAI's shape.

    Every request of a connection learns that the client has left. uvicorn tells the last one, and stops reading, and so
    does not even notice, while one waits behind another.
    """

    _is_in_head = True
    _head_bytes = 0
    _is_refused = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open_cycles: list[RequestResponseCycle] = []
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A new connection; it must not stay silent."""
        super().connection_made(transport)
        self._must_go_on_within(SILENCE_TIMEOUT_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was cut off."""
        self._has_gone_on()
        super().connection_lost(exc)
        self.pipeline.clear()
        for cycle in self._open_cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse a head that has grown over its limit without an end in sight."""
        if self._is_refused:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self._is_refused:
            self._refuse_head()
        if self._deadline is None and not self._is_answering:
            # blanks between requests, or the rest of a body that nobody waits for
            self._must_go_on_within(SILENCE_TIMEOUT_S, self.transport.close)

    def on_message_begin(self) -> None:
        """A new request."""
        super().on_message_begin()
        self._header_bytes = 0
        self._must_go_on_within(HEAD_TIMEOUT_S, self._refuse_late_head)

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            raise _HeadTooLarge

    def on_headers_complete(self) -> None:
        """The head has ended; what follows is the body."""
        self._is_in_head = False
        self._has_gone_on()
        super().on_headers_complete()
        self._open_cycles = [cycle for cycle in (*self._open_cycles, self.cycle) if not cycle.response_complete]
        if 0 < len(self.pipeline) <= _MAX_PIPELINED:
            self.flow.resume_reading()

    def on_message_complete(self) -> None:
        """The body has ended; what follows is the next head."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is no HTTP, and close."""
        if self._is_in_head and self.headers is not None and self._is_over():
            self._refuse_head()
        else:
            self._refuse(400, "Bad Request", "This is not a valid HTTP/1.1 request.", code="invalid_http")

    @property
    def _is_answering(self) -> bool:
        return any(not cycle.response_complete for cycle in self._open_cycles)

    def _must_go_on_within(self, seconds: float, otherwise: Hook) -> None:
        self._has_gone_on()
        self._deadline = self.loop.call_later(seconds, otherwise)

    def _has_gone_on(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse_late_head(self) -> None:
        if self._is_answering:
            # the answer to the request before it has the line to itself
            self._must_go_on_within(HEAD_TIMEOUT_S, self._refuse_late_head)
        else:
            message = f"The head of the request did not arrive within {HEAD_TIMEOUT_S:.0f} s."
            self._refuse(408, "Request Timeout", message, code="request_timeout")

    def _count(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._header_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    def _is_over(self) -> bool:
        return self._header_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS

    def _refuse_head(self) -> None:
        message = f"A request may have {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes of them, its URL included."
        self._refuse(431, "Request Header Fields Too Large", message, code="headers_too_large")

    def _refuse(self, status: int, reason: str, message: str, *, code: str) -> None:
        self._is_refused = True
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        head += f"x-request-id: req-{secrets.token_hex(12)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


class DrainingServer(uvicorn.Server):
    """Tells the application of the first stop signal at once; the second one ends the process without waiting."""

    def __init__(self, config: uvicorn.Config, *, on_listening: Hook, on_drain: Hook) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._on_drain = on_drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._on_listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop now."""
        if self.should_exit:
            logger.warning("second %s: stopping now", signal.Signals(sig).name)
            self.force_exit = True
        else:
            logger.info("%s: draining; once more stops now", signal.Signals(sig).name)
            self.should_exit = True
            self._on_drain()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that nobody else can take the port while the server starts. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock


def configure(app: ASGIApp, *, drain_timeout_s: float) -> uvicorn.Config:
    """How uvicorn runs: the fast parser and loop, no access log, lifespan run by `run`, no WebSocket."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(drain_timeout_s),
    )


def run(
    server: DrainingServer,
    sock: socket.socket,
    lifespan: Callable[[], AbstractAsyncContextManager[object]],
    background: Callable[[], Awaitable[None]],
) -> None:
    """Serve until a stop signal has drained; `background` runs beside the server. Raises what `lifespan` raises."""

    async def life() -> None:
        async with lifespan():
            task = asyncio.ensure_future(background())
            try:
                await server.serve([sock])
            finally:
                if server.force_exit:
                    # Children end by themselves when their socket does; a transaction either is on disk or never was.
                    logging.shutdown()
                    os._exit(_KILLED_BY_USER)
                task.cancel()

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(life())
