"""The commands of clients that tests run as a user does, each in an environment that `make clients` has made."""

import os
import subprocess
from pathlib import Path

import pytest


def client_program(environment: str, name: str) -> Path:
    """A command of one of the environments; skips the module where it is not installed."""
    path = Path(os.environ.get("SLIMSERVE_CLIENTS", ""), environment, "bin", name)
    if not path.is_file():
        pytest.skip(f"needs {name}: run `make clients`", allow_module_level=True)
    return path.absolute()


def run_client(command: list[str | Path], *, cwd: Path | None = None, **variables: str) -> str:
    """What a client's command printed; it is kept from everything but this machine. Fails unless it ends well."""
    environment = {
        **os.environ,
        **{"NO_PROXY": "*", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "unused"},
        **{"COLUMNS": "200", "TOKENIZERS_PARALLELISM": "false"},
        **variables,
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout
