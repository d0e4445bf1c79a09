"""The demo as a new user runs it: the real command, the real server, the embedded model."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SLIMSERVE_")}


def processes_of_session(session_id: int) -> list[int]:
    """Live processes that the server of that session started, or the server itself."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


# Seconds alone, minutes where other work shares two cores.
@pytest.mark.timeout(900)
def test_demo_shows_both_variants_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "demo", "--no-keep", "--run-dir", str(tmp_path)]

    result = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=880, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if re.match(r"slimstory/\w+ .* ms ", line)]
    original, small = rows
    assert original[0].startswith("slimstory/")
    assert small[0] == "slimstory/int8"
    # Disk, weights, memory (a number and a unit each), streams, TTFT, TPOT (the same), tok/s, perplexity, KL.
    assert [len(original), len(small)] == [15, 15]
    perplexities = [float(row[13]) for row in rows]
    assert 1 < perplexities[0] < 100
    assert perplexities[1] == pytest.approx(perplexities[0], rel=0.05)
    assert 0 < float(small[14]) < 0.1
    assert "Once upon a time" in result.stdout or len(re.findall(r"[A-Za-z]{2,}", result.stdout)) > 100
    server = json.loads((tmp_path / "server.json").read_text("utf-8"))
    # the kernel ends what is left when the server ends, a moment after it
    until_s = time.monotonic() + 60
    while left := processes_of_session(server["pid"]):
        assert time.monotonic() < until_s, left
        time.sleep(0.05)
