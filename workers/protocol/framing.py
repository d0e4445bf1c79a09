"""Frames on a stream socket: a u32 little-endian length, then one msgpack message. Never pickle.

The end of the socket is the crash detector of both sides, so nothing here waits, retries or times out.
"""

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from workers.protocol.errors import ProtocolError

HEADER = struct.Struct("<I")
# A frame of 64 MiB holds prompt logprobs with 20 alternatives for 100,000 tokens; more than that is a broken peer.
MAX_FRAME_BYTES = 64 * 2**20

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: msgspec.Struct) -> bytes:
    """The message as one frame, ready to be sent."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is over the {MAX_FRAME_BYTES} of a frame")
    return HEADER.pack(len(body)) + body


def frame_length(header: bytes) -> int:
    """Length of the body that follows this header. Raises ProtocolError if no honest peer would send it."""
    length: int = HEADER.unpack(header)[0]
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"frame of {length} bytes announced, at most {MAX_FRAME_BYTES} are allowed")
    return length


class Decoder(Generic[M]):
    """Turns frame bodies into messages of the union `kind`, for instance `ToWorker`."""

    def __init__(self, kind: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)

    def decode(self, body: bytes) -> M:
        """The message. Raises ProtocolError if it is none of the union."""
        try:
            return self._decoder.decode(body)  # type: ignore[no-any-return]  # msgspec types a union as Any
        except msgspec.DecodeError as error:
            raise ProtocolError(f"undecodable message: {error}") from error


class SocketChannel(Generic[M]):
    """The blocking end of the socket, used by children.

    `receive` returns None when the other side is gone.
    """

    def __init__(self, sock: socket.socket, kind: Any) -> None:
        self._sock = sock
        self._decoder: Decoder[M] = Decoder(kind)
        self._buffer = bytearray()

    def send(self, message: msgspec.Struct) -> None:
        """Write one frame. Raises BrokenPipeError or ConnectionResetError when the other side is gone."""
        self._sock.sendall(encode_frame(message))

    def receive(self) -> M | None:
        """Wait for the next message; None when the other side has closed."""
        while (message := self._take()) is None:
            if not self._fill():
                return None
        return message

    def receive_available(self) -> tuple[list[M], bool]:
        """Every message that has already arrived, without waiting, and whether the other side is still there."""
        is_open = True
        self._sock.setblocking(False)
        try:
            while is_open:
                is_open = self._fill()
        except BlockingIOError:
            pass
        finally:
            self._sock.setblocking(True)
        messages: list[M] = []
        while (message := self._take()) is not None:
            messages.append(message)
        return messages, is_open

    def _fill(self) -> bool:
        chunk = self._sock.recv(2**16)
        self._buffer += chunk
        return bool(chunk)

    def _take(self) -> M | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + frame_length(bytes(self._buffer[: HEADER.size]))
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return self._decoder.decode(body)
