"""The asyncio end of a child's socket: bytes in, messages out, with no task per message."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from workers.protocol.errors import ProtocolError
from workers.protocol.framing import HEADER, Decoder, encode_frame, frame_length

logger = logging.getLogger(__name__)

M = TypeVar("M")


class FrameProtocol(asyncio.Protocol, Generic[M]):
    """Parses frames as they arrive. The end of the socket is reported exactly once, whatever ended it."""

    def __init__(self, kind: Any, on_message: Callable[[M], None], on_lost: Callable[[], None]) -> None:
        self._decoder: Decoder[M] = Decoder(kind)
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's call: the socket is ours."""
        # A cast, not an isinstance: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio's call: decode every complete frame. A peer that breaks the framing is cut off."""
        self._buffer += data
        start = 0
        try:
            while (end := self._frame_end(start)) is not None:
                self._on_message(self._decoder.decode(bytes(self._buffer[start + HEADER.size : end])))
                start = end
        except ProtocolError as error:
            logger.error("a child broke the protocol: %s", error)
            self._buffer.clear()
            self.close()
            return
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's call: the other side is gone, or we have closed."""
        self._transport = None
        self._on_lost()

    def send(self, message: msgspec.Struct) -> None:
        """Write one frame; without effect when the other side is gone, because that has been reported already."""
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    def close(self) -> None:
        """Drop the socket now, unsent frames included."""
        if self._transport is not None:
            self._transport.abort()

    def _frame_end(self, start: int) -> int | None:
        body = start + HEADER.size
        if len(self._buffer) < body:
            return None
        end = body + frame_length(bytes(self._buffer[start:body]))
        return end if len(self._buffer) >= end else None
