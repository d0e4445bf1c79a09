"""Safetensors headers are believed only after every number in them has been checked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from workers.checkpoint.headers import INDEX_FILE, MAX_HEADER_BYTES, SINGLE_FILE, read_headers
from workers.protocol.errors import WorkerError, WorkerErrorCode


def write_raw(file: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """A safetensors file by hand; `length` lies about the header's size."""
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def entry(dtype: str = "F32", shape: Any = (2,), begin: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_headers_agree_with_the_safetensors_library(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 4, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int64)}
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})

    headers = read_headers(tmp_path)

    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in headers.tensors.items()} == {
        "a": ("BF16", (3, 4), 24),
        "b": ("I64", (), 8),
    }
    assert (headers.num_parameters, headers.weight_bytes) == (13, 32)


def test_digest_changes_with_a_name(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b", "a"):
        save_file({name: torch.zeros(2)}, tmp_path / SINGLE_FILE)
        digests.add(read_headers(tmp_path).digest)

    assert len(digests) == 2


BROKEN_HEADERS: dict[str, dict[str, Any]] = {
    "end-past-the-file": {"a": entry(shape=(4,), end=16)},
    "begin-after-end": {"a": entry(begin=8, end=0)},
    "negative-offset": {"a": entry(begin=-8, end=0)},
    "offset-not-an-integer": {"a": entry(end=8.0)},  # type: ignore[arg-type]
    "offset-a-bool": {"a": {**entry(), "data_offsets": [False, 8]}},
    "three-offsets": {"a": {**entry(), "data_offsets": [0, 4, 8]}},
    "shape-does-not-match": {"a": entry(shape=(3,))},
    "shape-negative": {"a": entry(shape=(-1, -2))},
    "shape-not-a-list": {"a": {**entry(), "shape": 2}},
    "shape-overflows-64-bits": {"a": entry(shape=(2**62, 2**62))},
    "rank-1000": {"a": entry(shape=(1,) * 1000, end=4), "b": entry(shape=(1,), begin=4)},
    "dtype-unknown": {"a": entry(dtype="F7")},
    "dtype-not-a-string": {"a": {**entry(), "dtype": ["F32"]}},
    "overlap": {"a": entry(), "b": entry(shape=(1,), begin=4)},
    "same-bytes-twice": {"a": entry(), "b": entry()},
    "gap": {
        "a": entry(shape=(1,), end=4),
        "b": entry(shape=(), begin=4, end=8),
        "c": entry(shape=(0,), begin=6, end=6),
    },
    "bytes-left-over": {"a": entry(shape=(1,), end=4)},
    "no-tensors-but-bytes": {},
    "entry-not-an-object": {"a": 5},
    "entry-without-shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "entry-with-more": {"a": {**entry(), "file": "/etc/passwd"}},
    "metadata-not-strings": {"__metadata__": {"n": 1}, "a": entry()},
}


@pytest.mark.parametrize("header", BROKEN_HEADERS.values(), ids=BROKEN_HEADERS.keys())
def test_inconsistent_header_is_corrupt(tmp_path: Path, header: dict[str, Any]) -> None:
    write_raw(tmp_path / SINGLE_FILE, json.dumps(header).encode(), data=bytes(8))

    with pytest.raises(WorkerError) as caught:
        read_headers(tmp_path)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT
    assert caught.value.message.startswith(SINGLE_FILE)


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"5", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a": {}, "a": {}}', b'{"a": NaN}'],
    ids=["empty", "array", "number", "cut", "not-utf8", "deep", "twice", "nan"],
)
def test_header_that_is_no_object_of_tensors_is_corrupt(tmp_path: Path, header: bytes) -> None:
    write_raw(tmp_path / SINGLE_FILE, header)

    with pytest.raises(WorkerError) as caught:
        read_headers(tmp_path)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


@pytest.mark.parametrize("size", [0, 7, 8, 20], ids=str)
def test_file_cut_inside_its_header_is_corrupt(tmp_path: Path, size: int) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / SINGLE_FILE)
    (tmp_path / SINGLE_FILE).write_bytes((tmp_path / SINGLE_FILE).read_bytes()[:size])

    with pytest.raises(WorkerError, match="ends inside its header") as caught:
        read_headers(tmp_path)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_absurd_header_length_is_unsafe_and_reads_nothing(tmp_path: Path) -> None:
    write_raw(tmp_path / SINGLE_FILE, b"{}", length=MAX_HEADER_BYTES + 1)

    with pytest.raises(WorkerError) as caught:
        read_headers(tmp_path)

    assert caught.value.code is WorkerErrorCode.UNSAFE_CHECKPOINT


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_of_an_index_are_read_together(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "y.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})

    headers = read_headers(tmp_path)

    assert headers.num_parameters == 5
    assert [file.name for file in headers.files] == ["x.safetensors", "y.safetensors"]


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", ".x.safetensors", "x.bin"],
)
def test_shard_name_that_is_not_plain_is_unsafe(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    write_index(folder, {"a": name})

    with pytest.raises(WorkerError) as caught:
        read_headers(folder)

    assert caught.value.code is WorkerErrorCode.UNSAFE_CHECKPOINT


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "gone.safetensors"}, {"a": "x.safetensors", "b": "x.safetensors"}, {}, [], None, {"a": 5}],
    ids=["no-file", "no-tensor", "empty", "list", "null", "number"],
)
def test_index_that_lies_is_corrupt(tmp_path: Path, weight_map: Any) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    write_index(tmp_path, weight_map)

    with pytest.raises(WorkerError) as caught:
        read_headers(tmp_path)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_tensor_in_two_shards_is_corrupt(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "y.safetensors")
    write_index(tmp_path, {"a": "x.safetensors", "b": "y.safetensors"})

    with pytest.raises(WorkerError, match=r"tensor 'a' is also in x\.safetensors"):
        read_headers(tmp_path)


def test_folder_without_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="save the model as safetensors"):
        read_headers(tmp_path)
