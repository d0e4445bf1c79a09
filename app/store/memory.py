"""Rows of `memory`: what each variant was seen to hold on each device, and with which options it was loaded."""

import sqlite3
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """device: as the worker named it. max_model_len, kv_cache_bytes: as asked for, None where nothing was.

    process_bytes: the most that its worker held, resident on a CPU, allocated on a GPU. load_s: of the newest load.
    """

    variant: str
    device: str
    max_model_len: int | None
    kv_cache_bytes: int | None
    process_bytes: int
    load_s: float


def put(connection: sqlite3.Connection, row: MemoryRow) -> None:
    """Store what was measured, in place of earlier numbers. Raises sqlite3.IntegrityError if the variant is gone."""
    connection.execute(
        "INSERT OR REPLACE INTO memory (variant, device, max_model_len, kv_cache_bytes, process_bytes, load_s, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(row.variant, row.device, row.max_model_len, row.kv_cache_bytes),
            *(row.process_bytes, row.load_s, time.time()),
        ),
    )


def select_all(connection: sqlite3.Connection) -> list[MemoryRow]:
    """What is known of every variant."""
    rows = connection.execute(
        "SELECT variant, device, max_model_len, kv_cache_bytes, process_bytes, load_s FROM memory ORDER BY created"
    )
    return [MemoryRow(**dict(row)) for row in rows]
