"""manifest.json: what a variant's folder must contain, byte for byte, and where it came from."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workers.checkpoint.config import read_json
from workers.checkpoint.save import FileRecord, to_json, write_file
from workers.protocol.errors import WorkerError, WorkerErrorCode

MANIFEST = "manifest.json"
_FORMAT_VERSION = 1
_CHUNK_BYTES = 4 * 2**20
_SOFTWARE = ("slimserve", "torch", "transformers", "safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a variant came from. recipe: everything that decides its bytes, as JSON data. folds: module that was
    divided by scales -> the linears that were multiplied by them.
    """

    variant: str
    base: str
    base_fingerprint: str
    recipe: dict[str, Any]
    folds: dict[str, list[str]] = field(default_factory=dict)


def write_manifest(folder: Path, files: dict[str, FileRecord], origin: Origin) -> None:
    """Write and sync the manifest, the last file of a variant."""
    content = {
        "format_version": _FORMAT_VERSION,
        "variant": origin.variant,
        "base": origin.base,
        "base_fingerprint": origin.base_fingerprint,
        "recipe": origin.recipe,
        "folds": origin.folds,
        "files": {name: {"size": record.size, "sha256": record.sha256} for name, record in sorted(files.items())},
        "software": {name: version(name) for name in _SOFTWARE} | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_file(folder, MANIFEST, to_json(content))


def verify_files(folder: Path, on_progress: Callable[[int, int], None]) -> None:
    """Compare every file with the manifest: name, size and SHA-256. on_progress gets (bytes done, bytes in all).

    Raises WorkerError (variant_corrupt) that names the first file that is missing, different or not listed.
    """
    files = _listed_files(folder)
    total = sum(record.size for record in files.values())
    done = 0
    extra = {file.name for file in folder.iterdir()} - set(files) - {MANIFEST}
    if extra:
        raise _corrupt(folder, f"{min(extra)} is not in {MANIFEST}")
    for name, record in files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != record.size:
            raise _corrupt(folder, f"{name} is missing or does not have {record.size} bytes")
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                on_progress(done, total)
        if digest.hexdigest() != record.sha256:
            raise _corrupt(folder, f"{name} does not have the bytes that were written (SHA-256 differs)")


def _listed_files(folder: Path) -> dict[str, FileRecord]:
    content = read_json(folder / MANIFEST)
    if content.get("format_version") != _FORMAT_VERSION:
        raise _corrupt(folder, f"{MANIFEST} has the format_version {content.get('format_version')!r}")
    try:
        files = {name: FileRecord(size=int(f["size"]), sha256=str(f["sha256"])) for name, f in content["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _corrupt(folder, f"{MANIFEST} does not list its files") from error
    if any(Path(name).name != name or name in (".", "..") for name in files):
        raise _corrupt(folder, f"{MANIFEST} lists a file outside the folder")
    return files


def _corrupt(folder: Path, problem: str) -> WorkerError:
    return WorkerError(WorkerErrorCode.VARIANT_CORRUPT, f"variant folder {folder.name}: {problem}; compress it again")
