"""The schema, as the steps that lead to it. Forward only: a step that has been released never changes.

`user_version` of the file counts the steps that it has taken.
"""

import sqlite3
from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE bases (
        name TEXT PRIMARY KEY,
        source TEXT NOT NULL,
        revision TEXT,
        info_json TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT;

    CREATE TABLE variants (
        id TEXT PRIMARY KEY,
        base TEXT NOT NULL REFERENCES bases(name),
        method TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('cast', 'compressed')),
        dir TEXT UNIQUE,
        format TEXT NOT NULL,
        bits INTEGER NOT NULL,
        weight_bytes INTEGER NOT NULL,
        disk_bytes INTEGER NOT NULL,
        created INTEGER NOT NULL,
        CHECK ((kind = 'cast') = (dir IS NULL))
    ) STRICT;
    CREATE INDEX variants_of_base ON variants(base);

    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        spec_json TEXT NOT NULL,
        spec_hash TEXT NOT NULL,
        idem_key TEXT UNIQUE,
        variant TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL DEFAULT 0,
        error_code TEXT,
        error_message TEXT,
        result_json TEXT,
        created REAL NOT NULL,
        started REAL,
        finished REAL
    ) STRICT;
    CREATE INDEX jobs_by_state ON jobs(state);

    CREATE TABLE job_events (
        job_id TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
        seq INTEGER NOT NULL,
        type TEXT NOT NULL,
        data_json TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (job_id, seq)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE measurements (
        variant TEXT NOT NULL REFERENCES variants(id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        values_json TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (variant, kind)
    ) STRICT, WITHOUT ROWID;
    """,
    "ALTER TABLE variants ADD COLUMN quarantine_reason TEXT;",
    """
    CREATE TABLE memory (
        variant TEXT NOT NULL REFERENCES variants(id) ON DELETE CASCADE,
        device TEXT NOT NULL,
        max_model_len INTEGER,
        kv_cache_bytes INTEGER,
        process_bytes INTEGER NOT NULL,
        load_s REAL NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (variant, device)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    CREATE TABLE measurements_by_device (
        variant TEXT NOT NULL REFERENCES variants(id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        device TEXT NOT NULL,
        environment_json TEXT NOT NULL,
        values_json TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (variant, kind, device)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO measurements_by_device
        SELECT variant, kind, COALESCE(json_extract(values_json, '$.device'), ''), '{}', values_json, created
        FROM measurements;
    DROP TABLE measurements;
    ALTER TABLE measurements_by_device RENAME TO measurements;

    CREATE TABLE choices (
        base TEXT PRIMARY KEY REFERENCES bases(name) ON DELETE CASCADE,
        constraints_json TEXT NOT NULL,
        created REAL NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE measurement_history (
        id INTEGER PRIMARY KEY,
        variant TEXT NOT NULL REFERENCES variants(id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        device TEXT NOT NULL,
        environment_json TEXT NOT NULL,
        values_json TEXT NOT NULL,
        created REAL NOT NULL
    ) STRICT;
    INSERT INTO measurement_history (variant, kind, device, environment_json, values_json, created)
        SELECT variant, kind, device, environment_json, values_json, created
        FROM measurements ORDER BY created, variant;
    DROP TABLE measurements;
    ALTER TABLE measurement_history RENAME TO measurements;
    CREATE INDEX measurements_of_variant ON measurements(variant, kind, device);
    """,
)


class SchemaTooNew(Exception):
    """The file was written by a later version of the product."""


def migrate(connection: sqlite3.Connection) -> None:
    """Take every missing step, each in one transaction. Raises SchemaTooNew rather than guess."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise SchemaTooNew(
            f"the database has schema {version}, this version knows {len(MIGRATIONS)}; use the version that wrote it"
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
