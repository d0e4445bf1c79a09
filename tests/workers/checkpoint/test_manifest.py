"""A variant's folder has exactly the files and bytes that its manifest lists."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.checkpoint.manifest import MANIFEST, Origin, verify_files, write_manifest
from workers.checkpoint.save import write_file
from workers.protocol.errors import WorkerError, WorkerErrorCode

ORIGIN = Origin(variant="small/int8", base="small", base_fingerprint="f" * 64, recipe={"method": "int8"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = {name: write_file(tmp_path, name, content) for name, content in [("a", b"12345"), ("b", b"")]}
    write_manifest(tmp_path, records, ORIGIN)
    return tmp_path


def test_untouched_folder_passes_and_reports_every_byte(folder: Path) -> None:
    seen: list[tuple[int, int]] = []

    verify_files(folder, lambda done, total: seen.append((done, total)))

    assert seen[-1] == (5, 5)


def test_manifest_tells_the_origin(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())

    assert (content["variant"], content["base"], content["recipe"]) == ("small/int8", "small", {"method": "int8"})
    assert {"torch", "transformers", "slimserve"} <= content["software"].keys()


def flip_a_bit(folder: Path) -> None:
    (folder / "a").write_bytes(b"12344")


def cut(folder: Path) -> None:
    (folder / "a").write_bytes(b"1234")


def remove(folder: Path) -> None:
    (folder / "b").unlink()


def add(folder: Path) -> None:
    (folder / "c").write_bytes(b"")


def list_outside(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["../a"] = content["files"]["a"]
    (folder / MANIFEST).write_text(json.dumps(content))


def garble(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format_version": 1, "files": [1]}')


def other_version(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"format_version": 2, "files": {}}')


@pytest.mark.parametrize("damage", [flip_a_bit, cut, remove, add, list_outside, garble, other_version])
def test_damage_is_found(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)

    with pytest.raises(WorkerError) as caught:
        verify_files(folder, lambda done, total: None)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT
