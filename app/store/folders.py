"""Folders of weights next to the database: made visible and taken away by one rename each."""

import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path


def publish(staged: Path, target: Path) -> None:
    """Move a complete, synced folder to a name that does not exist yet; on return the move itself is on disk."""
    if target.exists():
        raise FileExistsError(target.name)
    os.rename(staged, target)
    sync(target.parent)


def discard(folder: Path, data_dir: Path) -> None:
    """Take a folder out of sight with one rename, then delete it. Without effect if it is not there."""
    if not folder.exists():
        return
    trash = data_dir / "trash" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    os.rename(folder, trash)
    sync(folder.parent)
    shutil.rmtree(trash)


def quarantine(folder: Path, data_dir: Path) -> Path:
    """Move a folder that nobody knows to where nobody serves it from, and keep it."""
    target = data_dir / "quarantine" / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    os.rename(folder, target)
    sync(folder.parent)
    return target


def empty(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete everything inside a folder but the names in `keep`."""
    for child in folder.iterdir():
        if child.name in keep:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def sync(folder: Path) -> None:
    """Have the names inside a folder on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
