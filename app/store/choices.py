"""Rows of `choices`: what a base's `auto` must satisfy, where somebody has said so."""

import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import msgspec


def put(connection: sqlite3.Connection, base: str, constraints: Mapping[str, Any]) -> None:
    """Store the constraints of one base, in place of earlier ones."""
    connection.execute(
        "INSERT OR REPLACE INTO choices (base, constraints_json, created) VALUES (?, ?, ?)",
        (base, msgspec.json.encode(constraints).decode(), time.time()),
    )


def delete(connection: sqlite3.Connection, base: str) -> None:
    """Back to the default."""
    connection.execute("DELETE FROM choices WHERE base = ?", (base,))


def select_all(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """The constraints, by base."""
    rows = connection.execute("SELECT base, constraints_json FROM choices")
    return {row["base"]: msgspec.json.decode(row["constraints_json"], type=dict[str, Any]) for row in rows}
