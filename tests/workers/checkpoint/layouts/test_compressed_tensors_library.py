"""compressed-tensors itself reads what slimserve writes, and slimserve what it writes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.workers.checkpoint.layouts.samples import (
    CHANNEL8,
    COLUMNS,
    ROWS,
    W8A8,
    WRITTEN,
    codes_of,
    float8_scheme,
    grid_scheme,
)
from workers.checkpoint.layouts.layout import SchemeGroup
from workers.checkpoint.layouts.table import LAYOUTS
from workers.formats.codes import GridCodes
from workers.formats.scheme import Scheme

pytest.importorskip("compressed_tensors")
pytest.importorskip("accelerate")

_CASES = [
    (layout, name) for layout in ("pack-quantized", "int-quantized", "float-quantized") for name in WRITTEN[layout]
]


def _model(rows: int, columns: int, names: list[str]) -> nn.Module:
    model = nn.Module()
    for name in names:
        model.add_module(name, nn.Linear(columns, rows, bias=False))
    return model


def _prepared(config: dict[str, Any], model: nn.Module) -> Any:
    """The library's compressor, the model ready to take compressed tensors: what transformers does before loading."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config
    from transformers import CompressedTensorsConfig

    compressor = ModelCompressor.from_compression_config(CompressedTensorsConfig(**config))
    apply_quantization_config(model, compressor.quantization_config, run_compressed=False, show_progress=False)
    compressor.compress_model(model)
    return compressor


def _library_reads(config: dict[str, Any], stored: dict[str, dict[str, Tensor]], rows: int, columns: int) -> nn.Module:
    model = _model(rows, columns, list(stored))
    compressor = _prepared(config, model)
    flat = {f"{name}.{rest}": tensor for name, tensors in stored.items() for rest, tensor in tensors.items()}
    assert set(model.state_dict()) == set(flat)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {k: t.shape for k, t in flat.items()}
    # As they are: load_state_dict would cast each to the dtype of a model in fp32.
    for name, tensors in stored.items():
        for rest, tensor in tensors.items():
            setattr(model.get_submodule(name), rest, nn.Parameter(tensor, requires_grad=False))
    compressor.decompress_model(model)
    return model


@pytest.mark.parametrize(("layout", "case"), _CASES)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (39, 96), (200, 288)], ids=["even", "odd", "ragged"])
def test_the_library_reads_what_we_write(layout: str, case: str, rows: int, columns: int) -> None:
    scheme = WRITTEN[layout][case]
    codes = codes_of(scheme, rows, columns)
    config = LAYOUTS[layout].quantization_config([SchemeGroup(scheme=scheme, modules=["a"])], [])

    model = _library_reads(config, {"a": LAYOUTS[layout].encode(codes, scheme)}, rows, columns)

    # The library multiplies in the scale's dtype.
    weight, exact = model.get_submodule("a").get_parameter("weight").to(torch.float32), codes.dequantize()
    unit = 2**-8 if scheme.kind == "grid" else 2**-23
    assert ((weight - exact).abs() <= exact.abs() * unit).all()


def test_the_library_finds_the_formats_of_a_mix() -> None:
    schemes = {
        "a": grid_scheme(3, symmetric=False),
        "b": CHANNEL8,
        "c": W8A8,
        "d": float8_scheme(),
        "e": float8_scheme(128),
    }
    codes = {name: codes_of(scheme) for name, scheme in schemes.items()}
    layout = LAYOUTS["int-quantized"]
    groups = [SchemeGroup(scheme=scheme, modules=[name]) for name, scheme in schemes.items()]

    model = _library_reads(
        layout.quantization_config(groups, ["lm_head"]),
        {name: layout.encode(codes[name], scheme) for name, scheme in schemes.items()},
        ROWS,
        COLUMNS,
    )

    for name in schemes:
        exact = codes[name].dequantize()
        weight = model.get_submodule(name).get_parameter("weight").to(torch.float32)
        assert ((weight - exact).abs() <= exact.abs() * 2**-8).all()


@pytest.mark.parametrize(("layout", "case"), _CASES)
def test_we_read_what_the_library_writes(layout: str, case: str) -> None:
    scheme = WRITTEN[layout][case]
    codes = codes_of(scheme)
    config = LAYOUTS[layout].quantization_config([SchemeGroup(scheme=scheme, modules=["a"])], [])
    model = _model(ROWS, COLUMNS, ["a"])
    written = _library_writes(config, model, codes.dequantize(), codes)

    back = LAYOUTS[layout].decode("a", written, config, ROWS, COLUMNS)

    assert back.format == codes.format
    # A weight that is a code's own value rounds back to it.
    assert torch.equal(back.dequantize(), codes.dequantize())


def _library_writes(config: dict[str, Any], model: nn.Module, weight: Tensor, codes: Any) -> dict[str, Tensor]:
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    initialized = QuantizationConfig.model_validate(config | {"quantization_status": "frozen"})
    apply_quantization_config(model, initialized, show_progress=False)
    linear = model.get_submodule("a")
    linear.weight = nn.Parameter(weight)
    linear.weight_scale = nn.Parameter(codes.scale.to(torch.float32), requires_grad=False)
    if isinstance(codes, GridCodes):
        signed = codes.zero.to(torch.int16) - 2 ** (codes.num_bits - 1)
        linear.weight_zero_point = nn.Parameter(signed.to(torch.int8), requires_grad=False)
    compress_module(linear)
    return dict(linear.state_dict())


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
def test_both_pack_alike(num_bits: int) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    from workers.checkpoint.layouts.packing import pack_padded

    values = torch.randint(0, 2**num_bits, (5, 77), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    signed = (values.to(torch.int16) - 2 ** (num_bits - 1)).to(torch.int8)

    assert torch.equal(pack_padded(values, num_bits), pack_to_int32(signed, num_bits))
    assert torch.equal(pack_padded(values.T, num_bits).T, pack_to_int32(signed, num_bits, packed_dim=0))


def test_group_choice_is_the_librarys() -> None:
    from compressed_tensors.utils.match import match_targets

    from workers.checkpoint.layouts.compressed_groups import find_group
    from workers.checkpoint.layouts.stored import StoredLinear

    targets = ["Linear", "re:.*proj", "model.up_proj", "re:model.*", "re:.*gate.*", "up_proj"]
    linear = nn.Linear(1, 1)
    for name in ("model.up_proj", "model.gate_proj", "up_proj", "other", "x.proj"):
        groups = {target: {"targets": [target], "weights": {}} for target in targets}
        chosen = find_group(StoredLinear(name, {}), {"config_groups": groups})
        assert chosen["targets"] == match_targets(name, linear, targets)[:1]


def test_schemes_of_the_library_are_read() -> None:
    """Its presets for what slimserve multiplies with."""
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    from workers.checkpoint.layouts.compressed_groups import read_scheme

    expected = {
        "W4A16": grid_scheme(4, group_size=128),
        "W4A16_ASYM": grid_scheme(4, group_size=128, symmetric=False),
        "W8A8": W8A8,
        "FP8_DYNAMIC": float8_scheme(),
        "FP8": float8_scheme(),
        "FP8_BLOCK": float8_scheme(128),
        "W4A8": Scheme(kind="grid", num_bits=4, group_size=128, activation_bits=8),
        "NVFP4": None,
        "MXFP4": None,
        "W4AFP8": None,
    }
    for name, scheme in expected.items():
        dumped = preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json")
        assert read_scheme(dumped) == scheme, name
