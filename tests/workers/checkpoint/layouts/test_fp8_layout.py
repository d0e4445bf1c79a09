"""FP8 files against a slow reading of the definition, and through transformers' own reading of them."""

from typing import Any

import pytest
import torch

from tests.workers.checkpoint.layouts.samples import COLUMNS, MODULE, ROWS, codes_of, float8_scheme
from workers.checkpoint.layouts.layout import SchemeGroup
from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.formats.codes import Float8Codes
from workers.protocol.errors import WorkerError, WorkerErrorCode

_LAYOUT = LAYOUTS["fp8"]
_TILES, _ROWS = float8_scheme(128), float8_scheme()


def _config(**changes: Any) -> dict[str, Any]:
    return _LAYOUT.quantization_config([SchemeGroup(scheme=_TILES, modules=["a"])], ["lm_head"]) | changes


def test_weights_are_values_times_their_tiles_scale() -> None:
    codes = codes_of(_TILES, 256, 384)

    stored = _LAYOUT.encode(codes, _TILES)

    weight = codes.dequantize()
    assert stored["weight_scale_inv"].shape == (2, 3)
    for n, k in [(0, 0), (127, 128), (128, 127), (255, 383), (60, 256)]:
        expected = float(stored["weight"][n, k].float()) * float(stored["weight_scale_inv"][n // 128, k // 128])
        assert float(weight[n, k]) == pytest.approx(expected)


@pytest.mark.parametrize(("rows", "columns"), [(192, 128), (128, 576)])
def test_tiles_cut_off_at_an_edge_are_not_written(rows: int, columns: int) -> None:
    with pytest.raises(WorkerError, match=f"do not divide {max(rows, columns)}.*'float-quantized'") as caught:
        _LAYOUT.plan(_TILES, rows, columns)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(("rows", "columns"), [(576, 192), (100, 300)])
def test_tiles_cut_off_at_an_edge_are_read(rows: int, columns: int) -> None:
    """DeepSeek-V3's kv_a_proj_with_mqa has 576 rows."""
    codes = codes_of(_TILES, rows, columns)

    back = _LAYOUT.decode(MODULE, _LAYOUT.encode(codes, _TILES), _config(), rows, columns)

    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (ROWS,), (ROWS, 1)], ids=str)
def test_reads_scales_of_rows_and_tensors(name: str, shape: tuple[int, ...]) -> None:
    codes = codes_of(_ROWS)
    assert isinstance(codes, Float8Codes)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    config = {"quant_method": "fp8", "activation_scheme": "static"}
    stored = {"weight": codes.values, name: scale.to(torch.bfloat16), "input_scale": torch.ones(())}

    assert recognize(config) is _LAYOUT
    back = _LAYOUT.decode(MODULE, stored, config, ROWS, COLUMNS)

    per_row = scale.to(torch.bfloat16).float().reshape(-1, 1).expand(ROWS, 1)
    assert isinstance(back, Float8Codes)
    assert back.tile is None
    assert back.has_dynamic_activations
    assert torch.equal(back.dequantize(), codes.values.float() * per_row)


def test_reads_scales_that_are_powers_of_two() -> None:
    codes = codes_of(_TILES, 256, 384)
    assert isinstance(codes, Float8Codes)
    exponents = torch.tensor([[120, 127, 128], [126, 130, 100]], dtype=torch.uint8)
    stored = {"weight": codes.values, "weight_scale_inv": exponents.view(torch.float8_e8m0fnu)}

    back = _LAYOUT.decode(MODULE, stored, _config(scale_fmt="ue8m0"), 256, 384)

    expected = torch.exp2(exponents.float() - 127).repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(back.dequantize(), codes.values.float() * expected)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_block_size": [128, 64]},
        {"weight_block_size": [0, 0]},
        {"weight_block_size": 128},
        {"weight_block_size": ["128", "128"]},
        {"fmt": "e5m2"},
        {"expert_dtype": "fp4"},
    ],
    ids=str,
)
def test_other_tiles_and_numbers_are_recognized_as_such(change: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match="slimserve reads"):
        recognize(_config(**change))


@pytest.mark.parametrize(("rows", "columns"), [(256, 384), (64, 128), (128, 48)])
def test_transformers_reads_what_we_write(rows: int, columns: int) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.utils.quantization_config import FineGrainedFP8Config

    codes = codes_of(_TILES, rows, columns)
    _LAYOUT.plan(_TILES, rows, columns)
    stored = _LAYOUT.encode(codes, _TILES)

    read = FineGrainedFP8Config.from_dict(_config())
    weight = Fp8Dequantize(None)._dequantize_one(stored["weight"], stored["weight_scale_inv"], torch.float32)

    assert torch.equal(weight, codes.dequantize())
    assert (read.weight_block_size, read.activation_scheme) == ([128, 128], "dynamic")
    assert read.modules_to_not_convert == ["lm_head"]
