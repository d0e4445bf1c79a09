"""Rows of `measurements`: numbers about a variant, of each kind and device the newest and those before it."""

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

# Per variant, kind and device: years for people, and a bound for a program that measures all the time.
KEPT: Final = 100


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
    """Store the numbers of one kind and device behind earlier ones, of which the newest KEPT stay."""
    key = (variant_id, kind, device)
    connection.execute(
        "INSERT INTO measurements (variant, kind, device, environment_json, values_json, created)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            *key,
            msgspec.json.encode(environment or {}).decode(),
            msgspec.json.encode(values).decode(),
            time.time(),
        ),
    )
    of_key = "variant = ? AND kind = ? AND device = ?"
    connection.execute(
        f"DELETE FROM measurements WHERE {of_key} AND id NOT IN"
        f" (SELECT id FROM measurements WHERE {of_key} ORDER BY id DESC LIMIT {KEPT})",
        (*key, *key),
    )


def newest(rows: Iterable[MeasurementRow]) -> list[MeasurementRow]:
    """Of each variant, kind and device the last row, in the order of the last rows."""
    found: dict[tuple[str, str, str], MeasurementRow] = {}
    for row in rows:
        key = (row.variant, row.kind, row.device)
        found.pop(key, None)
        found[key] = row
    return list(found.values())


def select_all(connection: sqlite3.Connection) -> list[MeasurementRow]:
    """Every measurement that is kept, oldest first."""
    rows = connection.execute("SELECT * FROM measurements ORDER BY id")
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
