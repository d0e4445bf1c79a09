"""Rows of `measurements`: numbers about a variant, one row per kind."""

import sqlite3
import time
from collections.abc import Mapping

import msgspec


def put(connection: sqlite3.Connection, variant_id: str, kind: str, values: Mapping[str, float]) -> None:
    """Store the numbers of one kind, in place of earlier ones."""
    connection.execute(
        "INSERT OR REPLACE INTO measurements (variant, kind, values_json, created) VALUES (?, ?, ?, ?)",
        (variant_id, kind, msgspec.json.encode(values).decode(), time.time()),
    )


def select_kind(connection: sqlite3.Connection, kind: str) -> dict[str, dict[str, float]]:
    """The numbers of one kind, by variant."""
    rows = connection.execute("SELECT variant, values_json FROM measurements WHERE kind = ?", (kind,))
    return {row["variant"]: msgspec.json.decode(row["values_json"], type=dict[str, float]) for row in rows}
