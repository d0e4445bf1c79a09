"""One small random model that every library compresses, large enough for groups of 128, and the ids to calibrate on."""

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.workers.tiny import VOCAB_SIZE, save_tiny_model
from workers.compress.pipeline import compress_checkpoint
from workers.protocol.recipe_names import method_of
from workers.protocol.recipes import Calibration, Override, Recipe
from workers.protocol.specs import CompressSpec

WRITERS = Path(__file__).parent / "writers"
# 2 layers of 7 linears each
NUM_LINEARS = 14
Compress = Callable[..., Path]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in fp16."""
    folder = tmp_path_factory.mktemp("interop") / "base"
    return save_tiny_model(folder, dtype=torch.float16, hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="session")
def calibration(base: Path) -> Calibration:
    """32 samples of 64 random tokens."""
    ids = torch.randint(3, VOCAB_SIZE, (32, 64), generator=torch.Generator().manual_seed(1))
    save_file({"token_ids": ids.to(torch.int32)}, base.parent / "ids.safetensors")
    return Calibration(token_ids_path=str(base.parent / "ids.safetensors"))


@pytest.fixture(scope="session")
def compress(base: Path, calibration: Calibration) -> Compress:
    """Compress the base by slimserve, once for each recipe: compress(recipe, layout) returns the folder."""

    @functools.cache
    def run(recipe: Recipe, layout: str, overrides: tuple[Override, ...] = (), quantize_head: bool = False) -> Path:
        output = base.parent / f"ours-{next(numbers)}"
        spec = CompressSpec(
            base_path=str(base),
            output_dir=str(output),
            base="tiny",
            variant="tiny/x",
            method=method_of(recipe),
            recipe=recipe,
            layout=layout,
            overrides=overrides,
            quantize_head=quantize_head,
            calibration=calibration,
            device="cpu",
        )
        compress_checkpoint(spec, lambda progress: None, lambda: None)
        return output

    numbers = itertools.count()
    return run


@pytest.fixture(scope="session")
def write(base: Path, calibration: Calibration) -> Write:
    """Have a library compress the base in a process of its own: write(script, python) runs the script once for all its
    cases and returns the folder that has one folder per case.

    Its own process: libraries patch torch and transformers, start threads and set the environment.
    """

    @functools.cache
    def run(script: str, python: str = sys.executable) -> Path:
        folder = base.parent / script
        folder.mkdir()
        command = [python, str(WRITERS / f"{script}.py"), str(base), str(folder), calibration.token_ids_path]
        # GPTQModel 7.6 crashes on machines with 2 cores unless it is told
        environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return folder

    return run
