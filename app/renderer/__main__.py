"""`python -m app.renderer FD SECONDS`: render and compile until the socket closes, within 512 MiB.

Each request has so many seconds of the processor; whoever needs more ends the process.
"""

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


def main(fd: int, time_limit_s: float) -> None:
    """Answer every request, in order."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: SocketChannel[ToRenderer] = SocketChannel(socket.socket(fileno=fd), ToRenderer)
    while (request := channel.receive()) is not None:
        # Of the processor, not by the clock: a crowded machine must not fail what is cheap. SIGPROF ends the process.
        signal.setitimer(signal.ITIMER_PROF, time_limit_s)
        found = answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send(found)


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
    main(int(sys.argv[1]), float(sys.argv[2]))
