"""Rows of `bases`: models as published, and what an inspection said of them."""

import sqlite3
from dataclasses import dataclass

import msgspec

from workers.protocol.messages import BaseInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRow:
    """source: the folder or hub id that its user named. created: Unix seconds."""

    name: str
    source: str
    revision: str | None
    info: BaseInfo
    created: int

    @property
    def bytes_on_disk(self) -> int:
        """Its files, which are those of its casts too."""
        return sum(num_bytes for num_bytes, _ in self.info.files.values())


def insert(connection: sqlite3.Connection, row: BaseRow) -> None:
    """A new base. Raises sqlite3.IntegrityError if the name is taken."""
    connection.execute(
        "INSERT INTO bases (name, source, revision, info_json, created) VALUES (?, ?, ?, ?, ?)",
        (row.name, row.source, row.revision, _encode(row.info), row.created),
    )


def update_info(connection: sqlite3.Connection, name: str, source: str, info: BaseInfo) -> None:
    """The base lies elsewhere or has other files now."""
    connection.execute("UPDATE bases SET source = ?, info_json = ? WHERE name = ?", (source, _encode(info), name))


def select_all(connection: sqlite3.Connection) -> list[BaseRow]:
    """Every base, oldest first."""
    return [_row(row) for row in connection.execute("SELECT * FROM bases ORDER BY created, name")]


def delete(connection: sqlite3.Connection, name: str) -> bool:
    """Forget a base, unless a job that has not ended needs it: then False.

    Raises sqlite3.IntegrityError while it has variants.
    """
    cursor = connection.execute(
        "DELETE FROM bases WHERE name = ?1 AND NOT EXISTS (SELECT 1 FROM jobs"
        " WHERE state IN ('queued', 'running', 'publishing') AND instr(variant, ?1 || '/') = 1)",
        (name,),
    )
    return cursor.rowcount == 1


def _encode(info: BaseInfo) -> str:
    return msgspec.json.encode(info).decode()


def _row(row: sqlite3.Row) -> BaseRow:
    return BaseRow(
        name=row["name"],
        source=row["source"],
        revision=row["revision"],
        info=msgspec.json.decode(row["info_json"], type=BaseInfo),
        created=row["created"],
    )
