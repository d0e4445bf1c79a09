"""`python -m app.renderer FD`: render and compile until the socket closes, within 512 MiB."""

import ctypes
import resource
import signal
import socket
import sys
from typing import Final

from app.renderer.grammars import GrammarRefused, check
from app.renderer.messages import Accepted, Check, FromRenderer, Rejected, Render, Rendered, ToRenderer
from app.renderer.templates import TemplateRefused, render
from workers.protocol.framing import SocketChannel

MEMORY_BYTES: Final = 512 * 2**20
_PR_SET_PDEATHSIG: Final = 1


def main(fd: int) -> None:
    """Answer every request, in order."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: SocketChannel[ToRenderer] = SocketChannel(socket.socket(fileno=fd), ToRenderer)
    while (request := channel.receive()) is not None:
        channel.send(answer(request))


def answer(request: ToRenderer) -> FromRenderer:
    """What the front end gets for one request."""
    try:
        match request:
            case Render(template=template, variables=variables):
                return Rendered(text=render(template, variables))
            case Check(grammar=grammar, special_tokens=special_tokens):
                check(grammar, special_tokens)
                return Accepted()
    except (TemplateRefused, GrammarRefused) as refused:
        return Rejected(message=str(refused))


if __name__ == "__main__":
    main(int(sys.argv[1]))
