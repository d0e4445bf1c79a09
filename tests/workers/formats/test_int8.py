"""Int8Linear holds its tensors as stored, and takes the place of a model's linears."""

import pytest
import torch
from torch import nn

from workers.formats.int8 import Int8Format, Int8Linear
from workers.formats.linear import TensorLayout
from workers.formats.swap import product_dtype, quantized_linears, swap_linears
from workers.formats.table import FORMATS, recognize
from workers.kernels import reference
from workers.protocol.errors import WorkerError, WorkerErrorCode

FORMAT = Int8Format()


def test_layer_computes_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (48, 64), dtype=torch.int8, generator=generator)
    scale = torch.rand(48, 1, generator=generator).to(torch.bfloat16)
    layer = Int8Linear(weight, scale, torch.randn(48, generator=generator))
    x = torch.randn(3, 64, generator=generator).to(torch.bfloat16)

    result = layer(x)

    expected = reference.int8_linear(x, weight, scale, layer.bias)
    # two roundings to bf16 of sums of the size of a few hundred
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=2.0)
    assert layer.num_bytes == 48 * 64 + 48 * 2 + 48 * 4
    torch.testing.assert_close(layer.dequantize(), weight.float() * scale.float())


def test_swap_keeps_bias_shape_and_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 32), nn.Sequential(nn.Linear(32, 8, bias=False)))

    swap_linears(model, FORMAT, {"1.0": FORMAT.layout(8, 32), "0": FORMAT.layout(32, 64)})

    layers = quantized_linears(model)
    assert layers.keys() == {"0", "1.0"}
    assert [layers[name].bias is not None for name in ("0", "1.0")] == [True, False]
    assert all(parameter.is_meta for layer in layers.values() for parameter in layer.parameters())


@pytest.mark.parametrize(("name", "rows"), [("1", 8), ("2", 8), ("0", 9)], ids=["no-linear", "no-module", "shape"])
def test_swap_of_something_else_is_corrupt(name: str, rows: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

    with pytest.raises(WorkerError) as caught:
        swap_linears(model, FORMAT, {name: FORMAT.layout(rows, 4)})

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_product_dtype_is_the_shortest() -> None:
    model = nn.Sequential(nn.Linear(4, 8))

    assert product_dtype(model, torch.float32) is torch.float32
    swap_linears(model, FORMAT, {"0": FORMAT.layout(8, 4)})
    layer = quantized_linears(model)["0"]
    assert product_dtype(model, torch.float32) is layer.product_dtype
    assert product_dtype(model, torch.bfloat16) is torch.bfloat16


def test_own_config_is_recognized() -> None:
    assert recognize(FORMAT.quantization_config(["lm_head"])) is FORMATS["int8"]


OTHER_CONFIGS = {
    "gptq": {"quant_method": "gptq", "bits": 8},
    "no-groups": {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}},
    "group-not-an-object": {"quant_method": "compressed-tensors", "config_groups": {"group_0": 5}},
}
CHANGES = {
    "int4": ("weights", "num_bits", 4),
    "float": ("weights", "type", "float"),
    "grouped": ("weights", "strategy", "group"),
    "asymmetric": ("weights", "symmetric", False),
    "activations-too": (None, "input_activations", {"num_bits": 8}),
    "packed": (None, "format", "pack-quantized"),
}


@pytest.mark.parametrize("name", [*OTHER_CONFIGS, *CHANGES])
def test_other_compression_is_refused(name: str) -> None:
    config = OTHER_CONFIGS.get(name) or FORMAT.quantization_config([])
    if name in CHANGES:
        part, key, value = CHANGES[name]
        group = config["config_groups"]["group_0"]  # type: ignore[index]
        (group[part] if part else group)[key] = value

    with pytest.raises(WorkerError, match="slimserve reads") as caught:
        recognize(config)

    assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


@pytest.mark.parametrize(
    ("weight", "scale", "expected"),
    [
        (TensorLayout(dtype=torch.int8, shape=(4, 6)), TensorLayout(dtype=torch.float32, shape=(4, 1)), True),
        (TensorLayout(dtype=torch.float32, shape=(4, 6)), TensorLayout(dtype=torch.float32, shape=(4, 1)), False),
        (TensorLayout(dtype=torch.int8, shape=(4, 6)), TensorLayout(dtype=torch.float32, shape=(4, 2)), False),
        (TensorLayout(dtype=torch.int8, shape=(4, 6)), TensorLayout(dtype=torch.int8, shape=(4, 1)), False),
        (TensorLayout(dtype=torch.int8, shape=(24,)), TensorLayout(dtype=torch.float32, shape=(24, 1)), False),
    ],
    ids=["int8", "plain", "grouped-scale", "integer-scale", "flat"],
)
def test_stored_tensors_are_judged_by_dtype_and_shape(
    weight: TensorLayout, scale: TensorLayout, expected: bool
) -> None:
    assert FORMAT.holds_linear({"weight": weight, "weight_scale": scale}) is expected


def test_module_without_scale_is_no_compressed_linear() -> None:
    assert not FORMAT.holds_linear({"weight": TensorLayout(dtype=torch.int8, shape=(4, 6))})
