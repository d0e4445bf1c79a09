"""A disk that fills up while a job works: it fails, says why, and leaves nothing. On a small file system of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.tiny import save_tiny_model

ROOT = Path(__file__).resolve().parents[3]
# A mount that nobody else sees. The job wants 64 MiB beside its weights before it begins.
_MOUNTED = 'mount -t tmpfs -o size=100m tmpfs "$0" && exec "$@"'
_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNTED]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        works = subprocess.run([*_NAMESPACE, str(folder), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    if not works:
        pytest.skip("this system mounts no file system for an ordinary user")
    return folder


@pytest.mark.parametrize(
    ("method", "moment"),
    [("int8", "compressing"), ("gptq", "start"), ("gptq", "compressing"), ("gptq", "writing")],
    ids=["int8-weights", "gptq-activations", "gptq-layers", "gptq-weights"],
)
def test_job_on_a_disk_that_fills_up_says_so_and_leaves_nothing(
    tmp_path: Path, disk: Path, method: str, moment: str
) -> None:
    base = save_tiny_model(tmp_path / "base")
    job = [sys.executable, "-m", "tests.workers.compress.full_disk_job", str(base), str(disk), method, moment]

    done = subprocess.run([*_NAMESPACE, str(disk), *job], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["code"] == "disk_full"
    assert "the disk is full; free some space and try again" in answer["message"]
    assert answer["left"] == []
