"""Rows of `variants`: casts (a dtype at load, no files of their own) and what jobs have published."""

import sqlite3
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """id: `<base>/<name>`. dir: its folder below `variants/`, None for a cast. created: Unix seconds.

    quarantine_reason: why it is not good enough to be served; its folder then lies below `quarantine/`.
    """

    id: str
    base: str
    method: str
    kind: Literal["cast", "compressed"]
    dir: str | None
    format: str
    bits: int
    weight_bytes: int
    disk_bytes: int
    created: int
    quarantine_reason: str | None = None


def insert(connection: sqlite3.Connection, row: VariantRow) -> None:
    """A new variant. Raises sqlite3.IntegrityError if the id is taken."""
    connection.execute(
        "INSERT INTO variants (id, base, method, kind, dir, format, bits, weight_bytes, disk_bytes, created,"
        " quarantine_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(row.id, row.base, row.method, row.kind, row.dir),
            *(row.format, row.bits, row.weight_bytes, row.disk_bytes, row.created, row.quarantine_reason),
        ),
    )


def select_all(connection: sqlite3.Connection) -> list[VariantRow]:
    """Every variant, oldest first."""
    return [VariantRow(**dict(row)) for row in connection.execute("SELECT * FROM variants ORDER BY created, id")]


def delete(connection: sqlite3.Connection, variant_id: str) -> None:
    """Forget a variant and its measurements."""
    connection.execute("DELETE FROM variants WHERE id = ?", (variant_id,))
