"""bitsandbytes' files here, ours in transformers with bitsandbytes. Needs the environment of `make interop`."""

import copy
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests.interop.agreement import EXACT, load_ours, require_agreement
from tests.interop.conftest import NUM_LINEARS, Compress
from workers.protocol.recipes import Fp4Recipe, LlmInt8Recipe, Nf4Recipe, Override, Recipe

if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
    pytest.skip("needs bitsandbytes and accelerate: run `make interop`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

THEIRS: dict[str, dict[str, Any]] = {
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
    "int8-threshold-0": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
}
OURS: dict[str, Recipe] = {
    "nf4-double": Nf4Recipe(),
    "nf4": Nf4Recipe(double_quant=False),
    "nf4-block-128": Nf4Recipe(block_size=128),
    "fp4-double": Fp4Recipe(),
    "fp4": Fp4Recipe(double_quant=False),
    "llm_int8": LlmInt8Recipe(),
    "llm_int8-threshold-0": LlmInt8Recipe(threshold=0.0),
}


def load_theirs(path: Path) -> PreTrainedModel:
    """In fp32, so that nothing but the weights is rounded; 8-bit products round inputs and outputs all the same."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


def weight_of(layer: nn.Module) -> Tensor:
    """By the library's own definition. Its CPU product rounds to bf16 on machines that have such instructions."""
    weight: Any = layer.weight
    if layer.weight.dtype is torch.int8:
        return weight.CB.float() * (weight.SCB / 127).unsqueeze(1)
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(weight.quant_state)
    # of the result; a file names its own, which may be shorter
    state.dtype = torch.float32
    result: Tensor = dequantize_4bit(weight.data, state)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", THEIRS)
def test_their_files_load_here(base: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **THEIRS[name])
    AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=dtype).save_pretrained(tmp_path)
    shutil.copy(base / "tokenizer.json", tmp_path)

    ours = load_ours(tmp_path)

    require_agreement(ours, load_theirs(tmp_path), NUM_LINEARS, weight_of, weights=EXACT)


@pytest.mark.parametrize("name", OURS)
def test_our_files_load_there(compress: Compress, name: str) -> None:
    path = compress(OURS[name], "bitsandbytes")

    theirs = load_theirs(path)

    require_agreement(load_ours(path), theirs, NUM_LINEARS, weight_of, weights=EXACT)


@pytest.mark.parametrize("recipe", [Nf4Recipe(), LlmInt8Recipe()], ids=["nf4", "llm_int8"])
def test_modules_that_we_left_alone_stay_plain_there(compress: Compress, recipe: Recipe) -> None:
    path = compress(recipe, "bitsandbytes", overrides=(Override(pattern="*.down_proj"),))

    theirs = load_theirs(path)

    require_agreement(load_ours(path), theirs, NUM_LINEARS - 2, weight_of, weights=EXACT)
