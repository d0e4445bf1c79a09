"""llm-compressor's files here, compared with what compressed-tensors makes of them. Needs the environments of
`make interop`: the library wants an older transformers than slimserve is tested with, so it runs in its own.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.interop.agreement import (
    BF16,
    E4M3_LOGITS,
    EXACT,
    LOGITS,
    load_ours,
    require_agreement,
    require_same_weights,
)
from tests.interop.compressed_tensors_reader import decompressed_weights, load_theirs, weight_of
from tests.interop.conftest import NUM_LINEARS, Write

PYTHON = os.environ.get("LLMCOMPRESSOR_PYTHON", "")

if find_spec("compressed_tensors") is None or find_spec("accelerate") is None or not Path(PYTHON).is_file():
    reason = "needs compressed-tensors here and LLMCOMPRESSOR_PYTHON with llm-compressor: run `make interop`"
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


# fp16 scales of int4 become bf16 ones on the CPU; everything else stays as it is stored
FOUR_BITS = {"w4a16", "w4a16-gptq-act", "mixed"}
# the library rounds activations by one fixed scale, or by 128 columns; slimserve rounds each token by its own absmax
OTHER_ACTIVATIONS = {"fp8-static", "fp8-block"}


@pytest.mark.parametrize(
    "name", ["w4a16", "w4a16-gptq-act", "w8a16", "w8a8", "fp8-dynamic", "fp8-static", "fp8-block", "mixed"]
)
def test_their_files_load_here(write: Write, name: str) -> None:
    path = write("write_with_llmcompressor", PYTHON) / name

    ours = load_ours(path)

    require_agreement(
        ours,
        load_theirs(path),
        NUM_LINEARS,
        weight_of,
        weights=BF16 if name in FOUR_BITS else EXACT,
        logits_bound=E4M3_LOGITS if name in OTHER_ACTIVATIONS else LOGITS,
    )


def test_their_asymmetric_weights_are_ours(write: Write) -> None:
    path = write("write_with_llmcompressor", PYTHON) / "w4a16-asym"

    theirs = decompressed_weights(path)

    assert len(theirs) == NUM_LINEARS
    require_same_weights(load_ours(path), theirs, BF16)
