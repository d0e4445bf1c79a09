"""GPTQModel's files here, ours in transformers with GPTQModel. Needs the environment of `make interop`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig, PreTrainedModel

from tests.interop.agreement import BF16, FP16, load_ours, multiplied_weight, require_agreement, require_same_weights
from tests.interop.conftest import NUM_LINEARS, Compress, Write
from workers.checkpoint.config import read_quantization
from workers.formats.swap import quantized_linears
from workers.protocol.errors import WorkerError
from workers.protocol.recipes import AwqRecipe, GptqRecipe, Int8Recipe, Override, Recipe, RtnRecipe

if find_spec("gptqmodel") is None or find_spec("optimum") is None:
    pytest.skip("needs gptqmodel and optimum: run `make interop`", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

WRITER = "write_with_gptqmodel"


def load_theirs(path: Path, backend: str) -> PreTrainedModel:
    """backend "auto": what a user of transformers gets. "torch": GPTQModel's plain definition of the format."""
    quantization = read_quantization(path)
    assert quantization is not None
    options: dict[str, Any] = {}
    if backend == "torch":
        is_awq = quantization["quant_method"] == "awq"
        config = AwqConfig(backend="torch_awq") if is_awq else GPTQConfig(bits=quantization["bits"], backend="torch")
        options["quantization_config"] = config
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "gptq-sym", "gptq-sym-act", "gptq-asym", "gptq-asym-act", "gptq-8bit-g64", "gptq-3bit", "gptq-channel",
        "gptq_v2-sym", "gptq_v2-asym-act", "gptq_v2-2bit-g32", "awq-asym", "awq-sym",
    ],
)  # fmt: skip
def test_their_files_load_here(write: Write, name: str) -> None:
    path = write(WRITER) / name

    ours = load_ours(path)

    bound = FP16 if "8bit" in name else BF16
    require_agreement(ours, load_theirs(path, "torch"), NUM_LINEARS, multiplied_weight, weights=bound)


def test_their_head_of_other_bits_is_refused_by_name(write: Write) -> None:
    path = write(WRITER) / "gptq-head"

    with pytest.raises(WorkerError, match="dynamic"):
        load_ours(path)


def test_their_inverse_fp8_scales_are_not_multiplied(base: Path, write: Write) -> None:
    """`weight_scale_inv` is one divided by the scale here, and the scale itself in all other files."""
    path = write(WRITER) / "fp8"

    try:
        ours = load_ours(path)
    except WorkerError as error:
        assert "inverse" in str(error)  # noqa: PT017 - reading them would be as good as refusing them
        return

    plain = load_file(base / "model.safetensors")
    weights = {name: plain[f"{name}.weight"].float() for name in quantized_linears(ours)}
    require_same_weights(ours, weights, bound=2**-4)


OURS: dict[str, tuple[Recipe, str]] = {
    "gptq-act": (GptqRecipe(), "gptq"),
    "gptq-noact": (GptqRecipe(act_order=False), "gptq"),
    "gptq-asym-act": (GptqRecipe(symmetric=False), "gptq_v2"),
    "gptq-8bit-g64": (GptqRecipe(num_bits=8, group_size=64), "gptq"),
    "gptq-3bit": (GptqRecipe(num_bits=3), "gptq"),
    "rtn-sym": (RtnRecipe(), "gptq"),
    "rtn-asym": (RtnRecipe(symmetric=False), "gptq_v2"),
    "rtn-2bit-g32": (RtnRecipe(num_bits=2, group_size=32), "gptq_v2"),
    "rtn-channel": (RtnRecipe(group_size=-1), "gptq"),
    "int8": (Int8Recipe(), "gptq"),
    "awq": (AwqRecipe(), "awq"),
    "awq-sym": (AwqRecipe(symmetric=True), "awq"),
    "awq-in-gptq": (AwqRecipe(), "gptq_v2"),
    "rtn-in-awq": (RtnRecipe(symmetric=False), "awq"),
}
EIGHT_BITS = {"gptq-8bit-g64", "int8"}
# torch's int4 product on the CPU has no groups as long as these rows, and GPTQModel does not ask it before
UNSUPPORTED_BY_AUTO = {"rtn-channel"}


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("name", OURS)
def test_our_files_load_there(compress: Compress, name: str, backend: str) -> None:
    if backend == "auto" and name in UNSUPPORTED_BY_AUTO:
        pytest.skip("GPTQModel picks a kernel that refuses this group size; its plain kernel is tested")
    path = compress(*OURS[name])

    theirs = load_theirs(path, backend)

    bound = FP16 if name in EIGHT_BITS else BF16
    require_agreement(load_ours(path), theirs, NUM_LINEARS, multiplied_weight, weights=bound)


def test_modules_that_we_left_alone_stay_plain_there_in_gptq(compress: Compress) -> None:
    path = compress(RtnRecipe(), "gptq", overrides=(Override(pattern="*.down_proj"),))

    quantization = read_quantization(path)
    # without this list the library reads tensors that are not there, and aborts the process
    assert quantization is not None
    assert "modules_in_block_to_quantize" in quantization
    theirs = load_theirs(path, "torch")
    require_agreement(load_ours(path), theirs, NUM_LINEARS - 2, multiplied_weight, weights=BF16)


def test_modules_that_we_left_alone_stay_plain_there_in_awq(compress: Compress) -> None:
    path = compress(AwqRecipe(), "awq", overrides=(Override(pattern="*.down_proj"),))

    theirs = load_theirs(path, "torch")

    require_agreement(load_ours(path), theirs, NUM_LINEARS - 2, multiplied_weight, weights=BF16)
