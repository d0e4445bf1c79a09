"""Writing a checkpoint: tensors streamed into shards, small files, all hashed on the way and synced to disk.

A shard's header is known before its first tensor (dtypes and shapes are planned), so tensors are written one by one
and memory never holds more than one of them.
"""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from workers.checkpoint.headers import BITS, INDEX_FILE, SINGLE_FILE
from workers.protocol.errors import WorkerError, WorkerErrorCode

MAX_SHARD_BYTES = 2 * 2**30
_CHUNK_BYTES = 16 * 2**20
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One written file: bytes and SHA-256 as hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """A tensor that will be written: dtype as safetensors spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


@contextmanager
def staging(folder: Path) -> Iterator[None]:
    """A new folder to write into that is removed with all its content if the block raises.

    A full disk becomes WorkerError (disk_full).
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise WorkerError(WorkerErrorCode.INVALID_REQUEST, f"the output folder {folder.name} exists already") from error
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from error
        raise


def disk_full(needed_bytes: int | None = None, free_bytes: int | None = None) -> WorkerError:
    """The error for a disk without room."""
    numbers = "" if needed_bytes is None else f": {needed_bytes} bytes are needed, {free_bytes} are free"
    return WorkerError(WorkerErrorCode.DISK_FULL, f"the disk is full{numbers}; free some space and try again")


class _HashedFile:
    """A new file that hashes what goes through it and reaches the disk before it is closed."""

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._size += len(data)

    def close(self) -> FileRecord:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return FileRecord(size=self._size, sha256=self._digest.hexdigest())

    def abandon(self) -> None:
        self._stream.close()


def write_file(folder: Path, name: str, content: bytes) -> FileRecord:
    """Write and sync one small file."""
    file = _HashedFile(folder / name)
    try:
        file.write(content)
        return file.close()
    finally:
        file.abandon()


def copy_file(source: Path, folder: Path) -> FileRecord:
    """Copy a file under its own name and sync it."""
    file = _HashedFile(folder / source.name)
    try:
        with source.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                file.write(chunk)
        return file.close()
    finally:
        file.abandon()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, not only the bytes of its files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointWriter:
    """Writes planned tensors, in the planned order, into one model.safetensors or into shards with an index.

    Use as a context manager; `records` has every file after `finish`.
    """

    def __init__(self, folder: Path, tensors: Iterable[PlannedTensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
        self.records: dict[str, FileRecord] = {}
        self._folder = folder
        self._shards = _split(list(tensors), max_shard_bytes)
        self._pending = [(number, tensor) for number, shard in enumerate(self._shards) for tensor in shard]
        self._position = 0
        self._file: _HashedFile | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.abandon()

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the next tensor; its name and its bytes must be as planned."""
        number, tensor = self._pending[self._position]
        if tensor.name != name:
            raise ValueError(f"tensor {name} comes where {tensor.name} is planned")
        if self._file is None:
            self._file = _HashedFile(self._folder / self._shard_name(number))
            self._file.write(_header(self._shards[number]))
        written = 0
        for chunk in chunks:
            self._file.write(chunk)
            written += len(chunk)
        if written != tensor.num_bytes:
            raise ValueError(f"tensor {name} has {written} bytes, planned are {tensor.num_bytes}")
        self._position += 1
        if self._position == len(self._pending) or self._pending[self._position][0] != number:
            self.records[self._shard_name(number)] = self._file.close()
            self._file = None

    def finish(self) -> None:
        """Write the index if there is more than one shard."""
        if self._position != len(self._pending):
            raise ValueError(f"tensor {self._pending[self._position][1].name} was planned and not written")
        if len(self._shards) > 1:
            self.records[INDEX_FILE] = write_file(self._folder, INDEX_FILE, self._index())

    def _shard_name(self, number: int) -> str:
        if len(self._shards) == 1:
            return SINGLE_FILE
        return f"model-{number + 1:05d}-of-{len(self._shards):05d}.safetensors"

    def _index(self) -> bytes:
        total = sum(tensor.num_bytes for _, tensor in self._pending)
        weight_map = {tensor.name: self._shard_name(number) for number, tensor in self._pending}
        return to_json({"metadata": {"total_size": total}, "weight_map": weight_map})


def to_json(content: object) -> bytes:
    """JSON for people: indented, keys sorted, a newline at the end; the same content gives the same bytes."""
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _split(tensors: list[PlannedTensor], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def _header(tensors: list[PlannedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    return len(raw).to_bytes(8, "little") + raw
