"""For test_full_disk: a job whose disk somebody else fills. Prints what became of it, as JSON.

Usage: python -m tests.workers.compress.full_disk_job BASE DISK METHOD MOMENT. MOMENT: `start`, or a phase of progress.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.workers.compress.layer_jobs import GPTQ, IDS, compress
from workers.protocol.errors import WorkerError
from workers.protocol.messages import JobProgress
from workers.protocol.recipes import Calibration, Int8Recipe
from workers.protocol.specs import CompressSpec

# Room for the frozen plan of a job, and not for the hidden states of one sample.
_LEFT_BYTES = 3 * 4096
_CHUNK = bytes(2**20)


def fill(disk: Path) -> None:
    """Leave no room but the few bytes."""
    file = disk / "filler"
    if file.exists():
        return
    with file.open("wb", buffering=0) as stream:
        with suppress(OSError):
            while stream.write(_CHUNK) > 0:
                pass
        os.ftruncate(stream.fileno(), stream.tell() - _LEFT_BYTES)


def run(base: Path, disk: Path, method: str, moment: str) -> dict[str, object]:
    """The job's failure, and what it left on the disk."""
    save_file({"token_ids": IDS.to(torch.int32)}, base / "ids.safetensors")
    spec = CompressSpec(
        base_path=str(base),
        output_dir=str(disk / "job" / "out"),
        base="tiny",
        variant="tiny/x",
        method=method,
        recipe=GPTQ if method == "gptq" else Int8Recipe(),
        calibration=Calibration(token_ids_path=str(base / "ids.safetensors")),
        device="cpu",
        activation_bytes=1,
    )

    def report(progress: JobProgress) -> None:
        if progress.phase == moment:
            fill(disk)

    try:
        compress(spec, poll=lambda: fill(disk) if moment == "start" else None, report=report)
    except WorkerError as error:
        return {"code": error.code, "message": error.message, "left": [path.name for path in (disk / "job").iterdir()]}
    return {"code": "none"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])))
