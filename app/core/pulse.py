"""A signal to everyone who waits for something to change anywhere."""

import asyncio


class Pulse:
    """Take `next` before looking at things and wait for it after: then no change in between is missed."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def beat(self) -> None:
        """Wake all who wait now."""
        self.next.set()
        self.next = asyncio.Event()
