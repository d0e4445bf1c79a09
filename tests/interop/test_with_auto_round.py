"""AutoRound's files here, compared with what transformers makes of them. Needs the environment of `make interop`.

Its symmetric grids have scales of both signs, which no other writer makes.
"""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.interop.agreement import BF16, load_ours, multiplied_weight, require_agreement
from tests.interop.compressed_tensors_reader import load_theirs, weight_of
from tests.interop.conftest import NUM_LINEARS, Write

for package in ("auto_round", "gptqmodel", "optimum", "compressed_tensors"):
    if find_spec(package) is None:
        pytest.skip(f"needs {package}: run `make interop`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


@pytest.mark.parametrize("name", ["gptq-sym", "gptq-asym", "awq-asym"])
def test_their_files_load_here(write: Write, name: str) -> None:
    path = write("write_with_auto_round") / name

    ours = load_ours(path)

    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    require_agreement(ours, theirs, NUM_LINEARS, multiplied_weight, weights=BF16)


def test_their_compressed_tensors_files_load_here(write: Write) -> None:
    path = write("write_with_auto_round") / "pack-quantized-sym"

    ours = load_ours(path)

    require_agreement(ours, load_theirs(path), NUM_LINEARS, weight_of, weights=BF16)


@pytest.mark.parametrize(("name", "scales"), [("gptq-sym", ".scales"), ("pack-quantized-sym", ".weight_scale")])
def test_their_files_hold_negative_scales(write: Write, name: str, scales: str) -> None:
    path = write("write_with_auto_round") / name

    tensors = load_file(path / "model.safetensors")

    assert any((tensor < 0).any() for name, tensor in tensors.items() if name.endswith(scales))
