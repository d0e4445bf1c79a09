"""A crash at every instant of a publication, and what the next start makes of it."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.core import publish
from app.core.job_documents import QuantizeSpec, encode
from app.schemas.jobs import JobResultObject
from app.store import bases, events, jobs, measurements, variants
from app.store.bases import BaseRow
from app.store.database import Store
from app.store.jobs import JobRow, JobState
from workers.protocol.messages import BaseInfo

SPEC = QuantizeSpec(base="a", variant="a/int8", method="int8", device="cpu")
RESULT = JobResultObject(
    variant="a/int8",
    format="int8",
    bits=8,
    weight_bytes=10,
    disk_bytes=12,
    num_compressed=1,
    kept={},
    mean_error=0.1,
    kl_mean=0.01,
    kl_max=0.1,
    top1_agreement=0.9,
    num_tokens=16,
)
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
    files={},
    fingerprint="f",
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    await store.open()
    await store.run(bases.insert, BaseRow(name="a", source="/models/a", revision=None, info=INFO, created=1))
    yield store
    await store.close()


def insert_job(connection: sqlite3.Connection, job_id: str = "j1") -> None:
    row = JobRow(
        id=job_id,
        kind="quantize",
        spec_json=encode(SPEC),
        spec_hash="h",
        idem_key=None,
        variant=SPEC.variant,
        state=JobState.QUEUED,
        attempt=0,
        error_code=None,
        error_message=None,
        result_json=None,
        created=1.0,
        started=None,
        finished=None,
    )
    jobs.insert(connection, row)


def stage(data_dir: Path) -> None:
    out = data_dir / "staging" / "j1" / "out"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    (out / "model.safetensors").write_bytes(b"weights")


def left_while_compressing(connection: sqlite3.Connection, data_dir: Path) -> None:
    jobs.start(connection, "j1")
    (data_dir / "staging" / "j1" / "out.layers").mkdir(parents=True)


def left_before_the_rename(connection: sqlite3.Connection, data_dir: Path) -> None:
    jobs.start(connection, "j1")
    stage(data_dir)
    jobs.begin_publishing(connection, "j1", encode(RESULT))


def left_after_the_rename(connection: sqlite3.Connection, data_dir: Path) -> None:
    left_before_the_rename(connection, data_dir)
    publish.move_into_place(data_dir, "j1")


def left_after_the_transaction(connection: sqlite3.Connection, data_dir: Path) -> None:
    left_after_the_rename(connection, data_dir)
    job = jobs.select_one(connection, "j1")
    assert job is not None
    publish.record(connection, job)


@pytest.mark.parametrize(
    ("leave", "state", "is_published"),
    [
        (left_while_compressing, JobState.QUEUED, False),
        (left_before_the_rename, JobState.SUCCEEDED, True),
        (left_after_the_rename, JobState.SUCCEEDED, True),
        (left_after_the_transaction, JobState.SUCCEEDED, True),
    ],
    ids=["compressing", "before-rename", "after-rename", "after-transaction"],
)
async def test_crash_loses_nothing_and_publishes_at_most_once(
    store: Store, leave: Callable[[sqlite3.Connection, Path], None], state: JobState, is_published: bool
) -> None:
    await store.run(insert_job)
    await store.run(leave, store.data_dir)
    (store.data_dir / "staging" / "j0").mkdir()

    await store.run(publish.recover, store.data_dir)
    await store.run(publish.recover, store.data_dir)

    job = await store.run(jobs.select_one, "j1")
    assert job is not None
    assert job.state is state
    rows = await store.run(variants.select_all)
    assert [(row.id, row.dir) for row in rows] == ([("a/int8", "j1")] if is_published else [])
    folders = [folder.name for folder in (store.data_dir / "variants").iterdir()]
    assert folders == (["j1"] if is_published else [])
    # A queued job goes on from its finished layers; nobody asks for anything else in there.
    kept = [path.name for folder in (store.data_dir / "staging").iterdir() for path in folder.iterdir()]
    assert kept == (["out.layers"] if state is JobState.QUEUED else [])
    if is_published:
        (quality,) = await store.run(measurements.select_all)
        assert (quality.variant, quality.kind, quality.values["kl_mean"]) == ("a/int8", "verification", 0.01)
    seqs = [row.seq for row in await store.run(events.select_after, "j1", 0)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_third_lost_attempt_is_the_last(store: Store) -> None:
    await store.run(insert_job)
    for _ in range(publish.MAX_ATTEMPTS):
        await store.run(jobs.start, "j1")
        await store.run(publish.recover, store.data_dir)

    job = await store.run(jobs.select_one, "j1")

    assert job is not None
    assert (job.state, job.error_code, job.attempt) == (JobState.FAILED, "interrupted", publish.MAX_ATTEMPTS)


async def test_replacement_takes_the_name_and_tells_the_folder_of_the_old(store: Store) -> None:
    await store.run(insert_job)
    await store.run(left_after_the_transaction, store.data_dir)
    await store.run(insert_job, "j2")
    await store.run(jobs.start, "j2")
    publishing = await store.run(jobs.begin_publishing, "j2", encode(RESULT))

    row, replaced = await store.run(publish.record, publishing)

    assert (row.dir, replaced) == ("j2", "j1")
    assert [row.dir for row in await store.run(variants.select_all)] == ["j2"]


async def test_folder_of_no_variant_is_moved_to_quarantine_and_kept(store: Store) -> None:
    stray = store.data_dir / "variants" / "stray"
    stray.mkdir()
    (stray / "manifest.json").write_text("{}")

    await store.run(publish.recover, store.data_dir)

    assert not stray.exists()
    kept = list((store.data_dir / "quarantine").iterdir())
    assert [(folder / "manifest.json").is_file() for folder in kept] == [True]


async def test_variant_without_its_files_is_forgotten(store: Store) -> None:
    await store.run(insert_job)
    await store.run(left_after_the_transaction, store.data_dir)
    (store.data_dir / "variants" / "j1" / "manifest.json").unlink()

    await store.run(publish.recover, store.data_dir)

    assert await store.run(variants.select_all) == []
