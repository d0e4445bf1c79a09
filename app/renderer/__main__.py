"""`python -m app.renderer FD`: render until the socket closes, within 512 MiB."""

import ctypes
import resource
import signal
import socket
import sys
from typing import Final

from app.renderer.messages import Rejected, Render, Rendered
from app.renderer.templates import TemplateRefused, render
from workers.protocol.framing import SocketChannel

MEMORY_BYTES: Final = 512 * 2**20
_PR_SET_PDEATHSIG: Final = 1


def main(fd: int) -> None:
    """Answer every Render with Rendered or Rejected, in order."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: SocketChannel[Render] = SocketChannel(socket.socket(fileno=fd), Render)
    while (request := channel.receive()) is not None:
        channel.send(answer(request))


def answer(request: Render) -> Rendered | Rejected:
    """What the front end gets for one request."""
    try:
        return Rendered(text=render(request.template, request.variables))
    except TemplateRefused as refused:
        return Rejected(message=str(refused))


if __name__ == "__main__":
    main(int(sys.argv[1]))
