"""The asyncio end of a child's socket, against bytes as a kernel may deliver them."""

import asyncio
import socket
import struct

import pytest

from app.supervisor.channel import FrameProtocol
from workers.protocol.framing import MAX_FRAME_BYTES, encode_frame
from workers.protocol.messages import Cancel, FromWorker, Loading, Stop


class Peer:
    """A protocol on one end of a socket pair, the raw other end, and what has arrived."""

    def __init__(self) -> None:
        self.messages: list[FromWorker] = []
        self.lost = asyncio.Event()
        self.protocol = FrameProtocol[FromWorker](FromWorker, self.messages.append, self.lost.set)

    async def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(lambda: self.protocol, sock=ours)
        return theirs


def loading(number: int) -> Loading:
    return Loading(phase="reading", bytes_done=number, bytes_total=10)


async def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut() -> None:
    peer = Peer()
    expected = [loading(number) for number in range(3)]
    content = b"".join(encode_frame(message) for message in expected)

    for byte in content:
        peer.protocol.data_received(bytes([byte]))
    peer.protocol.data_received(content + content[:7])
    peer.protocol.data_received(content[7:])

    assert peer.messages == expected * 3


async def test_end_of_the_socket_is_told_once_after_the_last_message() -> None:
    peer = Peer()
    theirs = await peer.connect()

    theirs.sendall(encode_frame(loading(1)))
    theirs.close()
    await asyncio.wait_for(peer.lost.wait(), 60)

    assert peer.messages == [loading(1)]
    peer.protocol.send(Stop())


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("<I", MAX_FRAME_BYTES + 1),
        struct.pack("<I", 3) + b"\xc1\xc1\xc1",
        encode_frame(Cancel(request_id="of the other direction")),
    ],
    ids=["gigantic-length", "no-msgpack", "wrong-message"],
)
async def test_peer_that_breaks_the_protocol_is_cut_off(garbage: bytes) -> None:
    peer = Peer()
    theirs = await peer.connect()

    theirs.sendall(encode_frame(loading(1)) + garbage + encode_frame(loading(2)))
    await asyncio.wait_for(peer.lost.wait(), 60)

    assert peer.messages == [loading(1)]
    assert theirs.recv(1) == b""
    theirs.close()
