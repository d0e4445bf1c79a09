"""The openai package for Node."""

import os
import shutil
from pathlib import Path

import pytest

from tests.clients.programs import run_client

MODULES = Path(os.environ.get("SLIMSERVE_CLIENTS", ""), "node", "node_modules")

if shutil.which("node") is None or not (MODULES / "openai").is_dir():
    pytest.skip("needs node and its openai package: run `make clients`", allow_module_level=True)


def test_everything_that_the_script_tries(base_url: str) -> None:
    script = Path(__file__).with_name("node_client.cjs")

    assert run_client(["node", script, base_url], NODE_PATH=str(MODULES)) == "ok\n"
