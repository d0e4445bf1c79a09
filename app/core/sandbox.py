"""The front end's side of a renderer process: one request at a time, each with a limit of processor time."""

import asyncio
import logging
import signal
import socket
import sys
from typing import Final

from app.errors import Unavailable
from app.renderer.messages import FromRenderer, ToRenderer
from app.supervisor.channel import FrameProtocol
from app.supervisor.environment import child_environment, child_folder

logger = logging.getLogger(__name__)

# A process that says nothing for this long is stuck. It ends by itself when a request has had its processor time, but
# on a crowded machine that can be many times as long by the clock, and so can the imports of a fresh process.
STALL_LIMIT_S: Final = 60.0


class Sandbox:
    """Starts its process at the first use and again after every death.

    time_limit_s: of the processor, for one request; a process that needs more ends.
    """

    def __init__(self, time_limit_s: float) -> None:
        self.time_limit_s = time_limit_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._protocol: FrameProtocol[FromRenderer] | None = None
        self._answer: asyncio.Future[FromRenderer | None] | None = None

    async def stop(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end_process()

    async def ask(self, request: ToRenderer) -> FromRenderer | None:
        """The answer, or None if the process died over it or had to be killed. Raises Unavailable without a process."""
        async with self._turn:
            if self._protocol is None:
                await self._start_process()
            return await self._answer_to(request)

    async def _answer_to(self, request: ToRenderer) -> FromRenderer | None:
        assert self._protocol is not None
        arriving = self._answer = asyncio.get_running_loop().create_future()
        answer = None
        try:
            self._protocol.send(request)
            # Not a time-out around the answer: after a stall of our own, that would drop one that has arrived.
            await asyncio.wait({arriving}, timeout=STALL_LIMIT_S)
            answer = arriving.result() if arriving.done() else None
            if answer is None:
                logger.warning("a %s took too long or too much memory; the renderer ends", type(request).__name__)
        finally:
            self._answer = None
            # also when the caller was cancelled: a late answer must not reach the next request
            if answer is None:
                await self._end_process()
        return answer

    async def _start_process(self) -> None:
        await self._end_process()
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.renderer", str(theirs.fileno()), str(self.time_limit_s)),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=child_environment(faults="", needs_hub=False),
                cwd=child_folder(),
            )
        except OSError as error:
            ours.close()
            logger.exception("the renderer does not start")
            raise Unavailable(
                "Chat templates and grammars cannot be prepared right now.", retry_after_s=5, code="renderer"
            ) from error
        finally:
            theirs.close()
        protocol: FrameProtocol[FromRenderer] = FrameProtocol(
            FromRenderer, self._received, lambda: self._lost(protocol)
        )
        await asyncio.get_running_loop().create_unix_connection(lambda: protocol, sock=ours)
        self._protocol = protocol

    async def _end_process(self) -> None:
        protocol, process = self._protocol, self._process
        self._protocol = self._process = None
        if protocol is not None:
            protocol.close()
        if process is not None:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()

    def _received(self, answer: FromRenderer) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _lost(self, protocol: FrameProtocol[FromRenderer]) -> None:
        if protocol is not self._protocol:
            return
        self._protocol = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)
