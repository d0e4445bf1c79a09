"""Finished layers on disk while a job is under way, so that a killed job goes on where it was.

`plan.json` freezes what decides the result; a folder with another plan is emptied. Each layer is one safetensors file
that appears under its name only when it is whole, and one line of `progress.jsonl` with its SHA-256. A file without
its line, a line without its file and everything behind them are not trusted: those layers are made again.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from workers.checkpoint.headers import TensorHeader, read_header
from workers.checkpoint.save import sync_folder, to_json, write_file
from workers.checkpoint.tensors import read_tensor

_PLAN = "plan.json"
_PROGRESS = "progress.jsonl"
_CHUNK_BYTES = 4 * 2**20


class StagedLayers:
    """The layers of one job. notes: what the job remembers of each finished layer, as JSON data."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        self.notes: list[dict[str, Any]] = []
        content = to_json(plan)
        if (folder / _PLAN).is_file() and (folder / _PLAN).read_bytes() == content:
            self.notes = self._trusted()
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_file(folder, _PLAN, content)
        self._rewrite_progress()

    @property
    def num_finished(self) -> int:
        """Layers that need not be made again."""
        return len(self.notes)

    def save(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Keep the next layer; when this returns it survives the loss of power. tensors: by their final names."""
        index = self.num_finished
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
        target = self.folder / _file_name(index)
        temporary = target.with_suffix(".safetensors.tmp")
        temporary.unlink(missing_ok=True)
        record = write_file(self.folder, temporary.name, content)
        os.rename(temporary, target)
        sync_folder(self.folder)
        with (self.folder / _PROGRESS).open("ab") as stream:
            stream.write(_line(index, record.sha256, note))
            stream.flush()
            os.fsync(stream.fileno())
        self.notes.append({"sha256": record.sha256, "note": note})

    def tensors(self, index: int) -> dict[str, Tensor]:
        """All tensors of a finished layer."""
        return {name: read_tensor(header) for name, header in self.headers(index).items()}

    def headers(self, index: int) -> dict[str, TensorHeader]:
        """What the file of a finished layer holds, by name."""
        return read_header(self.folder / _file_name(index))[1]

    def _trusted(self) -> list[dict[str, Any]]:
        """The notes of the leading layers whose files have the bytes that were written."""
        notes: list[dict[str, Any]] = []
        progress = self.folder / _PROGRESS
        for line in progress.read_bytes().splitlines() if progress.is_file() else []:
            try:
                entry = json.loads(line)
                layer, sha256, note = entry["layer"], entry["sha256"], entry["note"]
            except (ValueError, KeyError, TypeError):
                break
            file = self.folder / _file_name(len(notes))
            if layer != len(notes) or not file.is_file() or _sha256(file) != sha256:
                break
            notes.append({"sha256": sha256, "note": note})
        return notes

    def _rewrite_progress(self) -> None:
        """Drop the lines and files that are not trusted, so that new lines continue a whole list."""
        kept = {_file_name(index) for index in range(self.num_finished)} | {_PLAN}
        lines = [_line(index, entry["sha256"], entry["note"]) for index, entry in enumerate(self.notes)]
        temporary = self.folder / f"{_PROGRESS}.tmp"
        temporary.unlink(missing_ok=True)
        write_file(self.folder, temporary.name, b"".join(lines))
        os.rename(temporary, self.folder / _PROGRESS)
        for file in self.folder.iterdir():
            if file.name not in kept | {_PROGRESS}:
                file.unlink()
        sync_folder(self.folder)


def _file_name(index: int) -> str:
    return f"layer_{index:04d}.safetensors"


def _line(index: int, sha256: str, note: dict[str, Any]) -> bytes:
    return json.dumps({"layer": index, "sha256": sha256, "note": note}, sort_keys=True).encode() + b"\n"


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
