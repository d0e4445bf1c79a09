"""The database: what it promises about crashes, second servers and wrong files."""

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.store import bases, choices, events, jobs, measurements, variants
from app.store.bases import BaseRow
from app.store.database import DatabaseDamaged, Store
from app.store.jobs import JobRow, JobState, StaleJob
from app.store.lock import DataDirInUse
from app.store.migrations import MIGRATIONS, SchemaTooNew
from app.store.variants import VariantRow
from workers.protocol.messages import BaseInfo

INFO = BaseInfo(
    path="/models/a",
    architecture="LlamaForCausalLM",
    model_type="llama",
    dtype="bf16",
    num_parameters=10,
    num_layers=2,
    weight_bytes=20,
    max_model_len=512,
    vocab_size=100,
    quantization=None,
    has_chat_template=True,
    files={"config.json": (10, 123456789)},
    fingerprint="f" * 64,
)
BASE = BaseRow(name="a", source="/models/a", revision=None, info=INFO, created=1)
VARIANT = VariantRow(
    id="a/int8",
    base="a",
    method="int8",
    kind="compressed",
    dir="d1",
    format="int8",
    bits=8,
    weight_bytes=10,
    disk_bytes=12,
    created=2,
)


def job_row(job_id: str = "j1", idem_key: str | None = None, created: float = 1.0) -> JobRow:
    return JobRow(
        id=job_id,
        kind="quantize",
        spec_json="{}",
        spec_hash="h",
        idem_key=idem_key,
        variant="a/int8",
        state=JobState.QUEUED,
        attempt=0,
        error_code=None,
        error_message=None,
        result_json=None,
        created=created,
        started=None,
        finished=None,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "data")
    await store.open()
    yield store
    await store.close()


async def test_rows_survive_a_restart(tmp_path: Path) -> None:
    first = Store(tmp_path)
    await first.open()
    await first.run(bases.insert, BASE)
    await first.run(variants.insert, VARIANT)
    await first.run(measurements.put, "a/int8", "verification", {"kl_mean": 0.5})
    await first.close()

    second = Store(tmp_path)
    await second.open()

    assert await second.run(bases.select_all) == [BASE]
    assert await second.run(variants.select_all) == [VARIANT]
    assert [row.values for row in await second.run(measurements.select_all)] == [{"kl_mean": 0.5}]
    await second.close()


async def test_commits_wait_for_the_disk(store: Store) -> None:
    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "locking_mode", "foreign_keys")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    full = 2
    assert await store.run(pragmas) == ["wal", full, "exclusive", 1]


async def test_failing_work_is_rolled_back_as_a_whole(store: Store) -> None:
    def insert_and_fail(connection: sqlite3.Connection) -> None:
        bases.insert(connection, BASE)
        raise ValueError("after the insert")

    with pytest.raises(ValueError, match="after the insert"):
        await store.run(insert_and_fail)

    assert await store.run(bases.select_all) == []


async def test_base_with_variants_or_open_jobs_cannot_be_forgotten(store: Store) -> None:
    await store.run(bases.insert, BASE)
    await store.run(variants.insert, VARIANT)

    with pytest.raises(sqlite3.IntegrityError):
        await store.run(bases.delete, "a")

    await store.run(variants.delete, "a/int8")
    await store.run(jobs.insert, job_row())
    assert not await store.run(bases.delete, "a"), "an open job needs it"
    await store.run(jobs.finish, "j1", JobState.QUEUED, JobState.CANCELLED)
    assert await store.run(bases.delete, "a")
    assert await store.run(bases.select_all) == []


async def test_second_server_on_one_data_dir_is_refused_and_names_the_first(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib\n"
        "from app.store.database import Store\n"
        "asyncio.run(Store(pathlib.Path(sys.argv[1])).open())\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"

        with pytest.raises(DataDirInUse, match=f"data dir in use.*pid {other.pid}"):
            await Store(tmp_path).open()

        other.kill()

    freed = Store(tmp_path)
    await freed.open()
    await freed.close()


async def test_random_bytes_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "slimserve.db").write_bytes(b"not a database, " * 1000)

    with pytest.raises(DatabaseDamaged):
        await Store(tmp_path).open()


async def test_later_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "slimserve.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()

    with pytest.raises(SchemaTooNew):
        await Store(tmp_path).open()


def database_of_schema(folder: Path, version: int) -> sqlite3.Connection:
    """The database as that version of the schema has it, with one variant."""
    connection = sqlite3.connect(folder / "slimserve.db")
    for script in MIGRATIONS[:version]:
        connection.executescript(script)
    connection.execute(f"PRAGMA user_version = {version}")
    bases.insert(connection, BASE)
    variants.insert(connection, VARIANT)
    return connection


async def test_measurements_of_an_earlier_schema_keep_their_numbers_and_get_their_device(tmp_path: Path) -> None:
    connection = database_of_schema(tmp_path, 2)
    for kind, values in (("verification", '{"kl_mean":0.5}'), ("measure", '{"device":"cuda:0","perplexity":2}')):
        connection.execute("INSERT INTO measurements VALUES (?, ?, ?, 7)", (VARIANT.id, kind, values))
    connection.commit()
    connection.close()

    store = Store(tmp_path)
    await store.open()
    rows = await store.run(measurements.select_all)
    await store.close()

    assert {(row.kind, row.device, row.created) for row in rows} == {("verification", "", 7), ("measure", "cuda:0", 7)}
    assert {row.kind: row.values for row in rows}["verification"] == {"kl_mean": 0.5}
    assert all(row.environment == {} for row in rows)


async def test_measurements_of_two_devices_stand_side_by_side(store: Store) -> None:
    await store.run(bases.insert, BASE)
    await store.run(variants.insert, VARIANT)

    for device, value in (("cpu", 1), ("cuda:0", 2), ("cpu", 3)):
        await store.run(measurements.put, VARIANT.id, "speed", {"x": value}, device=device)

    rows = await store.run(measurements.select_all)
    assert [(row.device, row.values["x"]) for row in rows] == [("cpu", 1), ("cuda:0", 2), ("cpu", 3)]
    assert [(row.device, row.values["x"]) for row in measurements.newest(rows)] == [("cuda:0", 2), ("cpu", 3)]


async def test_oldest_measurements_make_room_for_new_ones(store: Store) -> None:
    await store.run(bases.insert, BASE)
    await store.run(variants.insert, VARIANT)
    await store.run(measurements.put, VARIANT.id, "verification", {"x": -1})

    for value in range(measurements.KEPT + 2):
        await store.run(measurements.put, VARIANT.id, "speed", {"x": value}, device="cpu")

    found = [row.values["x"] for row in await store.run(measurements.select_all)]
    assert found == [-1, *range(2, measurements.KEPT + 2)]


async def test_measurements_of_the_schema_without_history_stay(tmp_path: Path) -> None:
    connection = database_of_schema(tmp_path, 4)
    for device, created in (("cuda:0", 8), ("cpu", 7)):
        values = (VARIANT.id, "speed", device, '{"a":1}', '{"x":2}', created)
        connection.execute("INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()

    store = Store(tmp_path)
    await store.open()
    await store.run(measurements.put, VARIANT.id, "speed", {"x": 3}, device="cpu")
    rows = await store.run(measurements.select_all)
    await store.run(variants.delete, VARIANT.id)
    left = await store.run(measurements.select_all)
    await store.close()

    assert [(row.device, row.environment, row.values["x"]) for row in rows] == [
        ("cpu", {"a": 1}, 2),
        ("cuda:0", {"a": 1}, 2),
        ("cpu", {}, 3),
    ]
    assert left == []


async def test_constraints_of_a_base_are_replaced_and_go_with_the_base(store: Store) -> None:
    await store.run(bases.insert, BASE)
    await store.run(choices.put, BASE.name, {"max_kl": 0.1})
    await store.run(choices.put, BASE.name, {"max_kl": 0.2})
    stored = await store.run(choices.select_all)

    await store.run(bases.delete, BASE.name)

    assert stored == {BASE.name: {"max_kl": 0.2}}
    assert await store.run(choices.select_all) == {}


async def test_move_from_the_wrong_state_hits_nothing(store: Store) -> None:
    await store.run(jobs.insert, job_row())
    await store.run(jobs.start, "j1")

    with pytest.raises(StaleJob):
        await store.run(jobs.start, "j1")
    with pytest.raises(StaleJob):
        await store.run(jobs.finish, "j1", JobState.QUEUED, JobState.CANCELLED)
    with pytest.raises(StaleJob, match="no job goes from running to succeeded"):
        await store.run(jobs.finish, "j1", JobState.RUNNING, JobState.SUCCEEDED)

    row = await store.run(jobs.select_one, "j1")
    assert row is not None
    assert (row.state, row.attempt) == (JobState.RUNNING, 1)


@pytest.mark.parametrize(("is_attempt_lost", "attempt"), [(True, 1), (False, 0)], ids=["crash", "graceful-stop"])
async def test_requeue_counts_crashes_only(store: Store, is_attempt_lost: bool, attempt: int) -> None:
    await store.run(jobs.insert, job_row())
    await store.run(jobs.start, "j1")

    row = await store.run(jobs.requeue, "j1", JobState.RUNNING, is_attempt_lost=is_attempt_lost)

    assert (row.state, row.attempt) == (JobState.QUEUED, attempt)


async def test_idempotency_key_is_free_again_after_its_life(store: Store) -> None:
    await store.run(jobs.insert, job_row("j1", idem_key="k", created=100.0))

    await store.run(jobs.forget_keys_before, 100.0)
    assert await store.run(jobs.select_by_key, "k") is not None
    await store.run(jobs.forget_keys_before, 100.5)

    assert await store.run(jobs.select_by_key, "k") is None


async def test_events_are_numbered_without_a_gap_and_progress_is_capped(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_EVENTS", 103)
    await store.run(jobs.insert, job_row())

    for _ in range(5):
        await store.run(events.append, "j1", "progress", "{}")
    await store.run(events.append, "j1", "state", "{}")

    found = await store.run(events.select_after, "j1", 0)
    assert [(row.seq, row.type) for row in found] == [(1, "progress"), (2, "progress"), (3, "progress"), (4, "state")]
    assert [row.seq for row in await store.run(events.select_after, "j1", 3)] == [4]
