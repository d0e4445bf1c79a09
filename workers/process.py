"""What every child process does before its own work: adopt the socket, bind its life to the parent's, shed secrets."""

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import MutableMapping

_PR_SET_PDEATHSIG = 1
_SECRET_WORDS = ("KEY", "SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL")
# No secrets, or, for the hub's token, given on purpose and only to the job that downloads.
_NOT_SCRUBBED = frozenset({"HF_TOKEN", "HF_TOKEN_PATH", "TOKENIZERS_PARALLELISM"})


def adopt_socket(fd: int) -> socket.socket:
    """The child's end of the socket pair, not inherited by children of this child."""
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return sock


def die_with_parent(sock: socket.socket) -> None:
    """Have the kernel kill this process when its parent dies; exit now if that has happened already.

    Between fork and prctl the parent may die unseen. Its end of the socket tells, where `getppid() == 1` would not:
    in a container the parent may well be process 1.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if is_closed(sock):
        raise SystemExit(0)


def is_closed(sock: socket.socket) -> bool:
    """True if the other side is gone and has left nothing to read. Does not wait."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def quiet_signals() -> None:
    """Leave Ctrl-C to the front end, which drains first; on SIGUSR1 write every thread's stack to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def scrub_environment(environ: MutableMapping[str, str]) -> None:
    """Remove variables that look like secrets, so that no library of this process can leak them."""
    for name in list(environ):
        if name not in _NOT_SCRUBBED and any(word in name.upper() for word in _SECRET_WORDS):
            del environ[name]


def log_to_stderr() -> None:
    """Send log records to stderr, whose last lines become the crash detail in the front end."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )


def prepare(fd: int) -> socket.socket:
    """All of the above, in order. Returns the socket to the front end."""
    log_to_stderr()
    quiet_signals()
    scrub_environment(os.environ)
    sock = adopt_socket(fd)
    die_with_parent(sock)
    return sock
