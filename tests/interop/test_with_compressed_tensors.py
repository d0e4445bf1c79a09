"""Our files in transformers with compressed-tensors, the library that defines their format. Needs the environment of
`make interop`.
"""

from importlib.util import find_spec

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
from tests.interop.conftest import NUM_LINEARS, Compress
from workers.protocol.recipes import (
    AwqRecipe,
    Fp8Recipe,
    GptqRecipe,
    Int8Recipe,
    Override,
    Recipe,
    RtnRecipe,
    SmoothQuantRecipe,
)

if find_spec("compressed_tensors") is None or find_spec("accelerate") is None:
    pytest.skip("needs compressed-tensors and accelerate: run `make interop`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

OURS: dict[str, tuple[Recipe, str]] = {
    "rtn": (RtnRecipe(), "pack-quantized"),
    "rtn-8bit-g64": (RtnRecipe(num_bits=8, group_size=64), "pack-quantized"),
    "rtn-3bit": (RtnRecipe(num_bits=3), "pack-quantized"),
    "rtn-channel": (RtnRecipe(group_size=-1), "pack-quantized"),
    "gptq-noact": (GptqRecipe(act_order=False), "pack-quantized"),
    "int8": (Int8Recipe(), "int-quantized"),
    "int8-packed": (Int8Recipe(), "pack-quantized"),
    "smoothquant": (SmoothQuantRecipe(), "int-quantized"),
    "fp8": (Fp8Recipe(), "float-quantized"),
    "fp8-weights": (Fp8Recipe(dynamic_activations=False), "float-quantized"),
    "fp8-block": (Fp8Recipe(block_size=128), "float-quantized"),
}
ASYMMETRIC: dict[str, Recipe] = {
    "rtn": RtnRecipe(symmetric=False),
    "rtn-2bit-g32": RtnRecipe(num_bits=2, group_size=32, symmetric=False),
    "rtn-channel": RtnRecipe(group_size=-1, symmetric=False),
    "gptq": GptqRecipe(symmetric=False, act_order=False),
    "awq": AwqRecipe(),
}


@pytest.mark.parametrize("name", OURS)
def test_our_files_load_there(compress: Compress, name: str) -> None:
    path = compress(*OURS[name])

    theirs = load_theirs(path)

    # the library rounds activations by 128 columns there, slimserve by token
    bound = E4M3_LOGITS if name == "fp8-block" else LOGITS
    require_agreement(load_ours(path), theirs, NUM_LINEARS, weight_of, weights=EXACT, logits_bound=bound)


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_our_asymmetric_weights_are_theirs(compress: Compress, name: str) -> None:
    path = compress(ASYMMETRIC[name], "pack-quantized")

    theirs = decompressed_weights(path)

    assert len(theirs) == NUM_LINEARS
    # the CPU's int4 product takes scale * (middle - zero point) in bf16
    require_same_weights(load_ours(path), theirs, BF16)


def test_modules_of_several_schemes_load_there(compress: Compress) -> None:
    overrides = (
        Override(pattern="*.layers.0.mlp.down_proj"),
        Override(pattern="*.self_attn.*", recipe=RtnRecipe(num_bits=8, group_size=-1)),
        Override(pattern="*.layers.1.mlp.*", recipe=RtnRecipe(group_size=64)),
    )
    path = compress(RtnRecipe(), "pack-quantized", overrides=overrides)

    theirs = load_theirs(path)

    require_agreement(load_ours(path), theirs, NUM_LINEARS - 1, weight_of, weights=EXACT)


def test_a_compressed_head_loads_there(compress: Compress) -> None:
    path = compress(RtnRecipe(), "pack-quantized", quantize_head=True)

    theirs = load_theirs(path)

    require_agreement(load_ours(path), theirs, NUM_LINEARS + 1, weight_of, weights=EXACT)
