"""Work that stops when nobody waits for it any more."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def run_attended(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, in the caller's own task. Raises ClientDisconnect, and cancels it, if the client leaves.

    The request's body must have been read: from then on `receive` has nothing to tell but the disconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    is_over = has_left = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal has_left
        if not is_over:
            has_left = True
            task.cancel()

    watcher = asyncio.create_task(_until_disconnect(receive))
    watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        is_over = True
        watcher.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
