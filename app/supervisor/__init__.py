"""Processes: start, watch, restart with back-off, drain, stop; the asyncio end of every child's socket."""
