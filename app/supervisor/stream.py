"""The news of one running sequence, from the worker's frames to the coroutine that answers the client."""

import asyncio

from workers.protocol.messages import SequenceUpdate


class WorkerGone(Exception):
    """The process behind a request is no more.

    reason: for people, without paths or stderr. is_deliberate: an unload or the server's stop, not a crash.
    """

    def __init__(self, reason: str, *, is_deliberate: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_deliberate = is_deliberate


class Stream:
    """Updates of one sequence in order. One reader; no task and no queue object per stream."""

    __slots__ = ("_gone", "_updates", "_waiter", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._updates: list[SequenceUpdate] = []
        self._gone: WorkerGone | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def get(self) -> list[SequenceUpdate]:
        """Every update that has arrived, at least one; the last one of a sequence has a finish_reason.

        Raises WorkerGone when the worker died, after all that had arrived before was taken.
        """
        while not self._updates and self._gone is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._updates:
            updates, self._updates = self._updates, []
            return updates
        assert self._gone is not None
        raise WorkerGone(self._gone.reason, is_deliberate=self._gone.is_deliberate)

    def put(self, update: SequenceUpdate) -> None:
        """Called by the worker's end for every update of this sequence."""
        self._updates.append(update)
        self._wake()

    def fail(self, gone: WorkerGone) -> None:
        """Called by the worker's end when no update will ever come again."""
        self._gone = gone
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
