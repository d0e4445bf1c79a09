"""Rows of `measurements`: numbers about a variant, one row per kind."""

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRow:
    """Numbers of one kind about one variant. created: Unix seconds."""

    variant: str
    kind: str
    values: dict[str, Any]
    created: float


def put(connection: sqlite3.Connection, variant_id: str, kind: str, values: Mapping[str, Any]) -> None:
    """Store the numbers of one kind, in place of earlier ones."""
    connection.execute(
        "INSERT OR REPLACE INTO measurements (variant, kind, values_json, created) VALUES (?, ?, ?, ?)",
        (variant_id, kind, msgspec.json.encode(values).decode(), time.time()),
    )


def select_kind(connection: sqlite3.Connection, kind: str) -> dict[str, dict[str, Any]]:
    """The numbers of one kind, by variant."""
    rows = connection.execute("SELECT variant, values_json FROM measurements WHERE kind = ?", (kind,))
    return {row["variant"]: msgspec.json.decode(row["values_json"], type=dict[str, Any]) for row in rows}


def select_all(connection: sqlite3.Connection) -> list[MeasurementRow]:
    """Every kind of every variant, oldest first."""
    rows = connection.execute("SELECT variant, kind, values_json, created FROM measurements ORDER BY created, variant")
    return [
        MeasurementRow(
            variant=row["variant"],
            kind=row["kind"],
            values=msgspec.json.decode(row["values_json"], type=dict[str, Any]),
            created=row["created"],
        )
        for row in rows
    ]
