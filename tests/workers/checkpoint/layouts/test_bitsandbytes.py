"""bitsandbytes' layout against a slow reading of the definition, and through the library itself."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.checkpoint.layouts.samples import COLUMNS, LLM_INT8, MODULE, ROWS, WRITTEN, codes_of
from workers.checkpoint.layouts.layout import SchemeGroup
from workers.checkpoint.layouts.quant_state import PREFIX, QuantState
from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.compress.codebook import LEVELS
from workers.formats.codes import CodebookCodes, NestedAbsmax, OutlierCodes
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode

_LAYOUT = LAYOUTS["bitsandbytes"]
_BLOCKS = {name: scheme for name, scheme in WRITTEN["bitsandbytes"].items() if scheme.kind != "outlier"}
_NESTED = _BLOCKS["nf4-b64-nested"]


def _config(scheme: Scheme) -> dict[str, Any]:
    return _LAYOUT.quantization_config([SchemeGroup(scheme=scheme, modules=["a"])], ["lm_head"])


def _state(stored: dict[str, Tensor], kind: str) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(bytes(stored[PREFIX + kind].tolist()))
    return state


@pytest.mark.parametrize("case", list(_BLOCKS))
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (7, 45)], ids=["even", "odd"])
def test_blocks_are_what_the_definition_reads(case: str, rows: int, columns: int) -> None:
    """Also an odd number of weights, whose last byte has one code."""
    scheme = _BLOCKS[case]
    codes = codes_of(scheme, rows, columns)

    stored = _LAYOUT.encode(codes, scheme)

    state = _state(stored, scheme.kind)
    assert state["shape"] == [rows, columns]
    assert len(stored[PREFIX + scheme.kind]) == _LAYOUT.plan(scheme, rows, columns)[PREFIX + scheme.kind].shape[0]
    weight = codes.dequantize().reshape(-1)
    for place in (0, 1, 63, 64, rows * columns // 2, rows * columns - 1):
        byte, block = int(stored["weight"][place // 2, 0]), place // state["blocksize"]
        code = byte & 15 if place % 2 else byte >> 4
        absmax = float(stored["weight.absmax"][block])
        if scheme.double_quant:
            outer = float(stored["weight.nested_absmax"][block // state["nested_blocksize"]])
            absmax = float(stored["weight.nested_quant_map"][int(absmax)]) * outer + state["nested_offset"]
        assert float(stored["weight.quant_map"][code]) * absmax == pytest.approx(float(weight[place]), rel=1e-5)
    back = _LAYOUT.decode(MODULE, stored, _config(scheme), rows, columns)
    assert torch.equal(back.dequantize(), codes.dequantize())


def test_the_state_is_as_long_for_every_offset() -> None:
    """The file's header is written before the offset is known."""
    numbers = torch.finfo(torch.float32)
    offsets = [0.0, 1.0, 1 / 3, -0.25, numbers.tiny, numbers.max, 1.4e-45, float(torch.tensor(0.1))]
    states = [
        QuantState(quant_type="nf4", block_size=64, shape=(2, 3), nested_block_size=256, nested_offset=offset)
        for offset in offsets
    ]

    assert len({len(state.to_bytes()) for state in states}) == 1
    assert [json.loads(state.to_bytes())["nested_offset"] for state in states] == offsets


def test_rows_are_bytes_times_absmax() -> None:
    codes = codes_of(LLM_INT8)

    stored = _LAYOUT.encode(codes, LLM_INT8)

    weight = codes.dequantize()
    for n, k in [(0, 0), (63, 255), (17, 100)]:
        expected = int(stored["weight"][n, k]) * float(stored["SCB"][n]) / 127
        assert float(weight[n, k]) == pytest.approx(expected)
    assert int(stored["weight_format"]) == 0


def test_the_threshold_is_the_configs_and_six_if_it_says_none() -> None:
    stored = _LAYOUT.encode(codes_of(LLM_INT8), LLM_INT8)

    for config, threshold in (({"llm_int8_threshold": 3}, 3.0), ({}, 6.0)):
        back = _LAYOUT.decode(MODULE, stored, config, ROWS, COLUMNS)
        assert isinstance(back, OutlierCodes)
        assert back.threshold == threshold


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
def test_reads_bytes_stored_in_another_dtype(dtype: torch.dtype) -> None:
    """bnb_4bit_quant_storage."""
    codes = codes_of(_NESTED)
    stored = _LAYOUT.encode(codes, _NESTED)
    stored["weight"] = stored["weight"].reshape(-1).view(dtype).reshape(-1, 1)

    back = _LAYOUT.decode(MODULE, stored, _config(_NESTED), ROWS, COLUMNS)

    assert torch.equal(back.dequantize(), codes.dequantize())


def test_reads_early_files_without_a_weight_format_and_a_quant_method() -> None:
    stored = _LAYOUT.encode(codes_of(LLM_INT8), LLM_INT8)
    del stored["weight_format"]
    config = {"load_in_8bit": True, "llm_int8_threshold": 6.0}

    assert recognize(config) is _LAYOUT
    assert _LAYOUT.decode(MODULE, stored, config, ROWS, COLUMNS).format == "llm_int8"


def test_an_order_for_one_gpu_is_named() -> None:
    stored = _LAYOUT.encode(codes_of(LLM_INT8), LLM_INT8) | {"weight_format": torch.tensor(2, dtype=torch.uint8)}

    with pytest.raises(WorkerError, match=f"{MODULE} is stored in an order for one kind of GPU"):
        _LAYOUT.decode(MODULE, stored, _config(LLM_INT8), ROWS, COLUMNS)


@pytest.mark.parametrize(
    "change",
    [
        {"quant_type": "nf3"},
        {"blocksize": 0},
        {"blocksize": 64.0},
        {"shape": None},
        {"shape": [64, 256, 1]},
        {"shape": [256, 64]},
        {"nested_blocksize": -256},
        {"nested_offset": "0.1"},
        {"nested_offset": float("nan")},
        {"blocksize": 128},
    ],
    ids=str,
)
def test_a_state_that_is_not_the_librarys_is_named(change: dict[str, Any]) -> None:
    stored = _LAYOUT.encode(codes_of(_NESTED), _NESTED)
    state = _state(stored, "nf4") | change
    stored[PREFIX + "nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    with pytest.raises(WorkerError, match=MODULE) as caught:
        _LAYOUT.decode(MODULE, stored, _config(_NESTED), ROWS, COLUMNS)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000], ids=lambda content: str(content[:4]))
def test_a_state_that_is_no_json_object_is_named(content: bytes) -> None:
    stored = _LAYOUT.encode(codes_of(_NESTED), _NESTED)
    stored[PREFIX + "nf4"] = torch.tensor(list(content), dtype=torch.uint8)

    with pytest.raises(WorkerError, match="JSON"):
        _LAYOUT.decode(MODULE, stored, _config(_NESTED), ROWS, COLUMNS)


def test_two_states_are_one_too_many() -> None:
    stored = _LAYOUT.encode(codes_of(_NESTED), _NESTED)

    with pytest.raises(WorkerError, match="has 2 tensors named"):
        _LAYOUT.decode(MODULE, stored | {PREFIX + "fp4": stored[PREFIX + "nf4"]}, {}, ROWS, COLUMNS)


def test_the_config_is_what_transformers_writes() -> None:
    from transformers import BitsAndBytesConfig

    kinds = {"nf4": _NESTED, "fp4": _BLOCKS["fp4-b512-single"], "llm_int8": LLM_INT8}
    for method, scheme in kinds.items():
        config = _config(scheme)
        read = BitsAndBytesConfig.from_dict(config)
        assert read.quantization_method() == method
        assert config == {name: read.to_dict()[name] for name in config}
        assert set(read.to_dict()) - set(config) == {"_load_in_4bit", "_load_in_8bit"}


# The library.


@pytest.fixture
def bnb() -> Any:
    return pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("case", list(_BLOCKS))
def test_the_library_reads_our_blocks(bnb: Any, case: str) -> None:
    scheme = _BLOCKS[case]
    # Blocks must divide rows here: where they run on into the next row, bitsandbytes 0.50.2's AVX-512 code misreads
    # its own files too.
    codes = codes_of(scheme, 32, 512)
    stored = _LAYOUT.encode(codes, scheme)
    rest = {name.removeprefix("weight."): tensor for name, tensor in stored.items() if name != "weight"}

    state = bnb.functional.QuantState.from_dict(rest, device=torch.device("cpu"))
    state.dtype = torch.float32
    weight = bnb.functional.dequantize_4bit(stored["weight"], state)

    assert (state.nested, state.blocksize, state.quant_type) == (scheme.double_quant, scheme.group_size, scheme.kind)
    # A level times an absmax, which is a sum where it is nested, in fp32 both.
    torch.testing.assert_close(weight, codes.dequantize(), rtol=2**-22, atol=2**-24)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested", "single"])
@pytest.mark.parametrize("block_size", [64, 256])
def test_we_read_the_librarys_blocks(bnb: Any, kind: str, nested: bool, block_size: int) -> None:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(3))
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=block_size, compress_statistics=nested, quant_type=kind
    )
    # as_dict spells the dtype with the letters of "torch." stripped off both ends; float32 survives it
    stored = {"weight": packed, **{f"weight.{name}": one for name, one in state.as_dict(packed=True).items()}}

    back = _LAYOUT.decode(MODULE, stored, {"load_in_4bit": True}, ROWS, COLUMNS)

    assert isinstance(back, CodebookCodes)
    assert (back.kind, back.block_size) == (kind, block_size)
    assert isinstance(back.absmax, NestedAbsmax) == nested
    torch.testing.assert_close(back.codebook, torch.tensor(LEVELS[kind]))
    expected = bnb.functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(back.dequantize(), expected, rtol=2**-22, atol=2**-24)


def test_the_library_names_tensors_as_planned(bnb: Any) -> None:
    for scheme in _BLOCKS.values():
        linear = bnb.nn.Linear4bit(
            COLUMNS, ROWS, bias=False, compress_statistics=scheme.double_quant, quant_type=scheme.kind
        )
        if scheme.group_size != linear.weight.blocksize:
            continue
        state = linear.to("cpu").state_dict()
        planned = _LAYOUT.plan(scheme, ROWS, COLUMNS)
        assert set(state) == set(planned)
        for name, tensor in state.items():
            if not name.startswith(PREFIX):
                assert (tensor.dtype, tuple(tensor.shape)) == (planned[name].dtype, planned[name].shape)


def test_the_library_reads_our_rows_and_we_its(bnb: Any) -> None:
    codes = codes_of(LLM_INT8)
    assert isinstance(codes, OutlierCodes)
    stored = _LAYOUT.encode(codes, LLM_INT8)
    linear = bnb.nn.Linear8bitLt(COLUMNS, ROWS, bias=False, has_fp16_weights=False, threshold=6.0).to("cpu")

    linear.load_state_dict(stored)

    weight = bnb.functional.int8_vectorwise_dequant(linear.weight.data, linear.weight.SCB)
    torch.testing.assert_close(weight, codes.dequantize(), rtol=2**-22, atol=0)
    written = linear.state_dict()
    assert set(written) == set(stored)
    back = _LAYOUT.decode(MODULE, written, _config(LLM_INT8), ROWS, COLUMNS)
    assert torch.equal(back.dequantize(), codes.dequantize())
