"""Rows of `measurements`: numbers about a variant, one row per kind and device."""

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRow:
    """Numbers of one kind about one variant on one device, "" where it does not matter. created: Unix seconds.

    environment: hardware, versions and load of the machine; empty where they were not noted.
    """

    variant: str
    kind: str
    device: str
    environment: dict[str, Any]
    values: dict[str, Any]
    created: float


def put(
    connection: sqlite3.Connection,
    variant_id: str,
    kind: str,
    values: Mapping[str, Any],
    *,
    device: str = "",
    environment: Mapping[str, Any] | None = None,
) -> None:
    """Store the numbers of one kind and device, in place of earlier ones."""
    connection.execute(
        "INSERT OR REPLACE INTO measurements (variant, kind, device, environment_json, values_json, created)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            variant_id,
            kind,
            device,
            msgspec.json.encode(environment or {}).decode(),
            msgspec.json.encode(values).decode(),
            time.time(),
        ),
    )


def select_kind(connection: sqlite3.Connection, kind: str) -> dict[str, dict[str, Any]]:
    """The numbers of one kind, by variant; of several devices the newest."""
    return {row.variant: row.values for row in select_all(connection) if row.kind == kind}


def select_all(connection: sqlite3.Connection) -> list[MeasurementRow]:
    """Every kind of every variant, oldest first."""
    rows = connection.execute("SELECT * FROM measurements ORDER BY created, variant")
    return [
        MeasurementRow(
            variant=row["variant"],
            kind=row["kind"],
            device=row["device"],
            environment=msgspec.json.decode(row["environment_json"], type=dict[str, Any]),
            values=msgspec.json.decode(row["values_json"], type=dict[str, Any]),
            created=row["created"],
        )
        for row in rows
    ]
