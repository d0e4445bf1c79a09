"""The outermost wall: request ids, hosts, origins, keys and body sizes, and the last handler of all.

Pure ASGI, and it reads `scope["path"]` only: a middleware that rebuilds URLs can be made to see another path.
"""

import logging
import re
import secrets
from collections.abc import MutableMapping
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.body import IGNORED_FIELDS
from app.api.error_shapes import is_anthropic
from app.api.handlers import error_response
from app.api.hosts import AllowedHosts, is_loopback, without_port
from app.api.keys import Keys
from app.api.validation import clip
from app.errors import ApiError, ContentTooLarge, Forbidden, Internal, InvalidRequest
from app.settings import Settings

logger = logging.getLogger(__name__)

# The scope's key of the asyncio transport, for a reader that must be cut off; None under other servers.
TRANSPORT: Final = "slimserve.transport"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
# The page asks for the key, so it must come without one; it is the same for everybody.
_PAGE: Final = re.compile(r"/|/page/[a-z_]+\.(?:css|js|svg)")
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST: Final = re.compile(r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::\d{1,5})?")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """Middleware that lets a request in or answers it, and stamps every answer with x-request-id."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._keys = Keys(settings)
        self._allowed_hosts = AllowedHosts(settings)
        # A page from elsewhere can point its own host name at this machine; a browser then sends Origin and Host alike.
        self._only_loopback_origins = not settings.has_keys and is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; everything but HTTP passes untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # uvicorn's receive is a method of the cycle that holds the socket's transport
        scope[TRANSPORT] = getattr(getattr(receive, "__self__", None), "transport", None)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _Answer(scope, send, headers.get("x-request-id", ""))
        try:
            self._check(scope, headers)
            await self._app(scope, _LimitedBody(receive, self._max_body_bytes), answer.send)
        except ApiError as error:
            await answer.error(error)
        except ClientDisconnect:
            logger.debug("the client left before its body was read", extra={"request_id": answer.request_id})
        except Exception:  # the last handler: whatever this was, the client gets an answer and the log a traceback
            logger.exception("unexpected error", extra={"request_id": answer.request_id})
            await answer.error(Internal("The server failed on this request; its log has the details."))

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if sum(name == b"host" for name, _ in scope["headers"]) > 1:
            # whoever is in front may have looked at another of them
            raise InvalidRequest("The request has more than one Host header.", code="invalid_host")
        if (host or scope["http_version"] == "1.1") and not _HOST.fullmatch(host):
            raise InvalidRequest("The Host header is missing or malformed.", code="invalid_host")
        if scope["method"] not in SAFE_METHODS and "origin" in headers:
            self._check_origin(headers["origin"], host)
        if scope["path"] not in OPEN_PATHS:
            # probes call by the address of the day, and what they get tells nothing
            self._check_host(host)
            if not _PAGE.fullmatch(scope["path"]):
                self._keys.check(scope["path"], headers)
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)

    def _check_host(self, host: str) -> None:
        if host and host not in self._allowed_hosts:
            raise InvalidRequest(
                f"This server does not go by the name '{clip(without_port(host))}'; its operator can add it to "
                "SLIMSERVE_ALLOWED_HOSTS.",
                code="invalid_host",
            )

    def _check_origin(self, origin: str, host: str) -> None:
        is_same = origin.partition("://")[2].lower() == host.lower()
        if not is_same or (self._only_loopback_origins and not is_loopback(without_port(host))):
            raise Forbidden("Pages of another origin may not call this server.", code="origin_not_allowed")


class _Answer:
    """The way back: adds the headers that every answer has, and knows whether a status was already sent."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope = scope
        self._send = send
        self._has_started = self._is_stream = False
        self.request_id = request_id if _REQUEST_ID.fullmatch(request_id) else f"req-{secrets.token_hex(12)}"
        scope["slimserve.request_id"] = self.request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_started = True
            self._is_stream = any(value.startswith(b"text/event-stream") for _, value in message.get("headers", ()))
            self._add_headers(message)
        await self._send(message)

    def _add_headers(self, message: MutableMapping[str, Any]) -> None:
        headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        if IGNORED_FIELDS in self._scope:
            headers.append((b"x-slimserve-ignored", self._scope[IGNORED_FIELDS].encode()))
        message["headers"] = headers

    async def error(self, error: ApiError) -> None:
        """Answer with an error. In a stream that is on its way it is the last event; elsewhere the connection ends."""
        if self._has_started:
            if self._is_stream:
                name = b"event: error\n" if is_anthropic(self._scope) else b""
                last = name + b"data: " + error_response(error, self._scope).body + b"\n\n"
                await self._send({"type": "http.response.body", "body": last, "more_body": False})
            return
        response = error_response(error, self._scope)
        await self.send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        await self.send({"type": "http.response.body", "body": response.body})


class _LimitedBody:
    """A `receive` that counts: a body without Content-Length must end before the limit as well."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._left_bytes = limit_bytes
        self._limit_bytes = limit_bytes

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left_bytes -= len(message.get("body", b""))
        if self._left_bytes < 0:
            raise _too_large(self._limit_bytes)
        return message


def _too_large(limit_bytes: int) -> ContentTooLarge:
    return ContentTooLarge(f"The body is larger than the {limit_bytes} bytes that this server takes.")
