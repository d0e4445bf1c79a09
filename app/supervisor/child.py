"""One child process: started with its end of a socket pair, heard until it is gone, never left behind."""

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeVar

import msgspec

from app.supervisor.channel import FrameProtocol
from app.supervisor.environment import child_command, child_environment, child_folder

logger = logging.getLogger(__name__)

M = TypeVar("M")

STDERR_BYTES: Final = 64 * 2**10
TERM_GRACE_S: Final = 5.0
# The kernel closes a dead process's socket a moment before its exit status can be read.
EXIT_STATUS_WAIT_S: Final = 0.5


class StderrRing:
    """The last 64 KiB of what a child wrote to its stderr."""

    def __init__(self, limit: int = STDERR_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Append, and forget whole chunks from the front while the rest still fills the ring."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= self._limit:
            self._size -= len(self._chunks.popleft())

    def text(self) -> str:
        """At most the last 64 KiB, undecodable bytes replaced."""
        return b"".join(self._chunks)[-self._limit :].decode(errors="replace")

    def last_lines(self, count: int) -> str:
        """The last `count` lines, for the log."""
        return "\n".join(self.text().splitlines()[-count:])


class Child(Generic[M]):
    """A started process. on_message gets every message, on_gone is called once, when the process has been reaped."""

    def __init__(self, label: str, on_message: Callable[[M], None], on_gone: Callable[[str], None]) -> None:
        self.label = label
        self.stderr = StderrRing()
        self._on_message = on_message
        self._on_gone = on_gone
        self._process: asyncio.subprocess.Process | None = None
        self._protocol: FrameProtocol[M] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()
        self._exit_wait_s = EXIT_STATUS_WAIT_S

    async def start(self, kind: Literal["serve", "job"], receives: Any, *, faults: str, needs_hub: bool) -> None:
        """Fork and connect. Runs on the main thread: PR_SET_PDEATHSIG fires when the forking *thread* ends.

        If it is cancelled half-way the socket closes, and the child, which lives by it, exits.
        """
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *child_command(kind, theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=child_environment(faults=faults, needs_hub=needs_hub, is_job=kind == "job"),
                cwd=child_folder(),
            )
            protocol = FrameProtocol[M](receives, self._on_message, self._socket_closed)
            await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=ours)
        except BaseException:
            ours.close()
            self.signal(signal.SIGKILL)
            raise
        finally:
            theirs.close()
        self._protocol = protocol
        self._spawn(self._read_stderr())
        logger.debug("started", extra={"child": self.label, "pid": self._process.pid})

    @property
    def pid(self) -> int:
        """The process's id; it stays readable after its end."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_gone(self) -> bool:
        """True once the process has been reaped."""
        return self._gone.is_set()

    def send(self, message: msgspec.Struct) -> None:
        """One frame to the child."""
        if self._protocol is not None:
            self._protocol.send(message)

    def expect_exit(self) -> None:
        """It has been told to exit: once its socket is closed, leave it the time to free what it holds."""
        self._exit_wait_s = TERM_GRACE_S

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; without effect on a process that has ended."""
        if self._process is not None and self._process.returncode is None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                logger.debug("gone before %s", number.name, extra={"child": self.label})

    async def wait(self) -> None:
        """Until the process has been reaped and everyone has been told."""
        await self._gone.wait()

    async def terminate(self, grace_s: float = TERM_GRACE_S) -> None:
        """SIGTERM, and SIGKILL after grace_s; returns when the process is gone and its memory with it."""
        if self.is_gone:
            return
        self.signal(signal.SIGTERM)
        if not await self.gone_within(grace_s):
            self.signal(signal.SIGKILL)
            await self.wait()

    async def gone_within(self, timeout_s: float) -> bool:
        """Wait at most timeout_s; True if the process is gone."""
        try:
            await asyncio.wait_for(self._gone.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _socket_closed(self) -> None:
        self._spawn(self._bury())

    async def _bury(self) -> None:
        """The socket's end is the end: reap the process, by force if it lingers, and tell why it died."""
        assert self._process is not None
        try:
            await asyncio.wait_for(self._process.wait(), self._exit_wait_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()
        self._gone.set()
        returncode = self._process.returncode
        assert returncode is not None
        self._on_gone(describe_exit(returncode))

    async def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(2**16):
            self.stderr.write(chunk)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def describe_exit(returncode: int) -> str:
    """For people: how a process ended."""
    if returncode == 0:
        return "the process exited"
    if returncode > 0:
        return f"the process exited with status {returncode}"
    name = signal.Signals(-returncode).name
    if -returncode == signal.SIGKILL:
        return f"the process was killed by {name}; if nobody did so on purpose, the machine ran out of memory"
    return f"the process was killed by {name}"
