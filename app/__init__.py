"""The HTTP side of slimserve: one asyncio process that never imports torch."""

__version__ = "0.1.0"
