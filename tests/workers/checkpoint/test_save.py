"""What is written is what was planned, complete and hashed; what fails leaves nothing behind."""

import errno
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workers.checkpoint.headers import INDEX_FILE, SINGLE_FILE, read_headers
from workers.checkpoint.save import CheckpointWriter, PlannedTensor, copy_file, staging, write_file
from workers.checkpoint.tensors import SAFETENSORS_DTYPES, raw_chunks, read_tensor, tensor_bytes
from workers.protocol.errors import WorkerError, WorkerErrorCode

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([[1], [-128]], dtype=torch.int8),
    "c": torch.full((4,), 0.5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7, dtype=torch.int64),
}
PLAN = [
    PlannedTensor(name=name, dtype=SAFETENSORS_DTYPES[tensor.dtype], shape=tuple(tensor.shape))
    for name, tensor in TENSORS.items()
]


def write_all(folder: Path, max_shard_bytes: int = 2**30) -> CheckpointWriter:
    with CheckpointWriter(folder, PLAN, max_shard_bytes) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, [tensor_bytes(tensor)])
        writer.finish()
    return writer


def test_the_safetensors_library_reads_what_was_written(tmp_path: Path) -> None:
    writer = write_all(tmp_path)

    loaded = load_file(tmp_path / SINGLE_FILE)

    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    content = (tmp_path / SINGLE_FILE).read_bytes()
    assert writer.records[SINGLE_FILE].size == len(content)
    assert writer.records[SINGLE_FILE].sha256 == hashlib.sha256(content).hexdigest()


def test_shards_stay_below_their_limit_and_have_an_index(tmp_path: Path) -> None:
    writer = write_all(tmp_path, max_shard_bytes=26)

    headers = read_headers(tmp_path)

    assert [file.name for file in headers.files] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert all(torch.equal(read_tensor(headers.tensors[name]), tensor) for name, tensor in TENSORS.items())
    assert json.loads((tmp_path / INDEX_FILE).read_text())["metadata"]["total_size"] == headers.weight_bytes
    assert set(writer.records) == {file.name for file in tmp_path.iterdir()}


def test_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    write_all(tmp_path, max_shard_bytes=1)

    assert len(list(tmp_path.glob("*.safetensors"))) == len(TENSORS)


def test_raw_chunks_are_the_stored_bytes(tmp_path: Path) -> None:
    write_all(tmp_path)

    header = read_headers(tmp_path).tensors["a"]

    assert b"".join(raw_chunks(header)) == bytes(tensor_bytes(TENSORS["a"]))


def test_file_cut_after_its_header_was_read_is_corrupt(tmp_path: Path) -> None:
    write_all(tmp_path)
    header = read_headers(tmp_path).tensors["c"]
    with (tmp_path / SINGLE_FILE).open("r+b") as stream:
        stream.truncate(header.start + 3)

    with pytest.raises(WorkerError, match="ends inside tensor 'c'"):
        read_tensor(header)
    with pytest.raises(WorkerError, match="ends inside tensor 'c'"):
        list(raw_chunks(header))


@pytest.mark.parametrize(("name", "data"), [("b", bytes(24)), ("a", bytes(23)), ("a", bytes(25))])
def test_unplanned_tensor_or_size_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with CheckpointWriter(tmp_path, PLAN) as writer, pytest.raises(ValueError, match=name):
        writer.write(name, [data])


def test_unfinished_checkpoint_is_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, PLAN) as writer:
        writer.write("a", [tensor_bytes(TENSORS["a"])])
        with pytest.raises(ValueError, match="b was planned and not written"):
            writer.finish()


def test_files_are_never_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path, "x", b"1")

    with pytest.raises(FileExistsError):
        write_file(tmp_path, "x", b"2")


def test_copy_keeps_bytes_and_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "to").mkdir()

    record = copy_file(tmp_path / "x", tmp_path / "to")

    assert (tmp_path / "to" / "x").read_bytes() == b"content"
    assert record.sha256 == hashlib.sha256(b"content").hexdigest()


def test_failed_staging_leaves_nothing(tmp_path: Path) -> None:
    def interrupted_job() -> None:
        with staging(tmp_path / "out"):
            write_file(tmp_path / "out", "x", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_job()

    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_said_so_and_leaves_nothing(tmp_path: Path) -> None:
    def job_without_room() -> None:
        with staging(tmp_path / "out"):
            # every write to this device fails with ENOSPC
            (tmp_path / "out" / "x").symlink_to("/dev/full")
            (tmp_path / "out" / "x").write_bytes(b"1")

    with pytest.raises(WorkerError) as caught:
        job_without_room()

    assert caught.value.code is WorkerErrorCode.DISK_FULL
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_disk_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as caught, staging(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")

    assert caught.value.errno == errno.EIO


def test_existing_output_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")

    with pytest.raises(WorkerError, match="exists already"), staging(tmp_path):
        pass

    assert (tmp_path / "x").exists()
