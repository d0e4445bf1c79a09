"""Our files of `quant_method: fp8` in transformers, which expands them to bf16 where there is no GPU. Needs the
environment of `make interop`.
"""

from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.interop.agreement import BF16, E4M3_LOGITS, load_ours, multiplied_weight, require_agreement
from tests.interop.conftest import NUM_LINEARS, Compress
from workers.protocol.recipes import Fp8Recipe, Override

if find_spec("accelerate") is None:
    pytest.skip("needs accelerate: run `make interop`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # that there is no GPU


@pytest.mark.parametrize("num_kept", [0, 2])
def test_our_files_load_there(compress: Compress, num_kept: int) -> None:
    overrides = (Override(pattern="*.down_proj"),) if num_kept else ()
    path = compress(Fp8Recipe(block_size=128), "fp8", overrides=overrides)

    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).float()

    require_agreement(
        load_ours(path),
        theirs,
        NUM_LINEARS - num_kept,
        multiplied_weight,
        weights=BF16,
        # it does not round activations when it has expanded the weights
        logits_bound=E4M3_LOGITS,
    )
