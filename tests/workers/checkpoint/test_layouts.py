"""What all layouts have in common, and GPTQ and AWQ against slow readings of their definitions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.checkpoint.layouts.samples import (
    CASES,
    COLUMNS,
    LLM_INT8,
    MODULE,
    ROWS,
    W8A8,
    WRITTEN,
    bits_at,
    codes_of,
    float8_scheme,
    grid_scheme,
    shapes,
)
from workers.checkpoint.layouts.layout import SchemeGroup, split_name
from workers.checkpoint.layouts.packing import pack_padded, unpack_padded
from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.formats.codes import GridCodes
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode
from workers.protocol.recipe_names import LAYOUTS as LAYOUTS_OF_METHODS

_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_PLACES = [(0, 0), (1, 10), (7, 21), (13, 31), (63, 95), (30, 43)]


def _config(layout: str, scheme: Scheme, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    group = SchemeGroup(scheme=scheme, modules=[MODULE])
    return LAYOUTS[layout].quantization_config([group], list(ignore))


@pytest.mark.parametrize(("layout", "case"), CASES)
def test_encode_makes_what_was_planned(layout: str, case: str) -> None:
    scheme = WRITTEN[layout][case]
    assert LAYOUTS[layout].accepts(scheme)

    stored = LAYOUTS[layout].encode(codes_of(scheme), scheme)

    planned = LAYOUTS[layout].plan(scheme, ROWS, COLUMNS)
    assert shapes(stored) == {name: (one.dtype, one.shape) for name, one in planned.items()}
    assert LAYOUTS[layout].holds_linear(planned)
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert all(split_name(f"{MODULE}.{name}") == (MODULE, name) for name in stored)


@pytest.mark.parametrize(("layout", "case"), CASES)
def test_decode_gives_back_what_was_encoded(layout: str, case: str) -> None:
    scheme = WRITTEN[layout][case]
    codes = codes_of(scheme)
    config = _config(layout, scheme)

    assert recognize(config) is LAYOUTS[layout]
    back = LAYOUTS[layout].decode(MODULE, LAYOUTS[layout].encode(codes, scheme), config, ROWS, COLUMNS)

    assert type(back) is type(codes)
    assert back.format == codes.format
    assert torch.equal(back.dequantize(), codes.dequantize())
    fields = ("num_bits", "activation_bits", "kind", "block_size", "tile", "has_dynamic_activations", "threshold")
    for field in fields:
        assert getattr(back, field, None) == getattr(codes, field, None)
    for field in ("codes", "zero", "group_index"):
        expected, actual = getattr(codes, field, None), getattr(back, field, None)
        assert actual is expected is None or torch.equal(actual, expected)


def test_every_layout_of_a_method_exists() -> None:
    named = {layout for layouts in LAYOUTS_OF_METHODS.values() for layout in layouts}

    assert named == set(LAYOUTS) == set(WRITTEN)


def _damaged(tensors: dict[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """The tensors with one of them missing, cut, of another dtype, or with one dimension more."""
    tensor = tensors[name]
    others = {key: value for key, value in tensors.items() if key != name}
    wrong = torch.bool if tensor.dtype is not torch.bool else torch.int8
    damage = {
        "missing": None,
        "cut": None if tensor.dim() == 0 else tensor[:-1],
        "dtype": torch.zeros(tensor.shape, dtype=wrong),
        "nested": tensor.unsqueeze(0),
    }
    return {kind: others if one is None else others | {name: one} for kind, one in damage.items()}


# Without these the rest still says all.
_OPTIONAL = {"g_idx", "weight_shape", "weight_format"}


@pytest.mark.parametrize(
    ("layout", "case"),
    [
        ("gptq", "int4-g32-sym"),
        ("gptq_v2", "int3-act"),
        ("awq", "int4-channel-asym"),
        ("pack-quantized", "int3-g32-asym"),
        ("pack-quantized", "int8-channel-sym"),
        ("int-quantized", "w8a8"),
        ("float-quantized", "fp8-channel"),
        ("float-quantized", "fp8-tile128"),
        ("bitsandbytes", "nf4-b64-nested"),
        ("bitsandbytes", "fp4-b64-single"),
        ("bitsandbytes", "llm-int8"),
        ("fp8", "fp8-tile128"),
    ],
)
def test_contradictory_tensors_are_named(layout: str, case: str) -> None:
    """Never an error of torch's, whichever tensor is damaged and however."""
    scheme = WRITTEN[layout][case]
    stored = LAYOUTS[layout].encode(codes_of(scheme), scheme)

    for name in stored:
        for kind, tensors in _damaged(stored, name).items():
            if name in _OPTIONAL and len(tensors) < len(stored):
                continue
            # The blocks' bytes are read in whatever dtype and shape they are stored.
            if (layout, name) == ("bitsandbytes", "weight") and case != "llm-int8" and kind in ("nested", "dtype"):
                continue
            with pytest.raises(WorkerError, match=MODULE) as caught:
                LAYOUTS[layout].decode(MODULE, tensors, _config(layout, scheme), ROWS, COLUMNS)
            assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


@pytest.mark.parametrize(("layout", "case"), CASES)
def test_tensors_of_another_shape_than_the_models_are_named(layout: str, case: str) -> None:
    scheme = WRITTEN[layout][case]
    stored = LAYOUTS[layout].encode(codes_of(scheme), scheme)

    for rows, columns in ((ROWS, COLUMNS + 3), (ROWS - 3, COLUMNS), (2 * ROWS, COLUMNS), (ROWS, COLUMNS // 2)):
        with pytest.raises(WorkerError, match=MODULE) as caught:
            LAYOUTS[layout].decode(MODULE, stored, _config(layout, scheme), rows, columns)
        assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


@pytest.mark.parametrize("act_order", [False, True], ids=["in-order", "act-order"])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("name", "offset"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_stores_what_its_definition_reads(name: str, offset: int, num_bits: int, act_order: bool) -> None:
    scheme = grid_scheme(num_bits, symmetric=False, act_order=act_order)
    codes = codes_of(scheme)

    stored = LAYOUTS[name].encode(codes, scheme)

    weight = codes.dequantize()
    for n, k in _PLACES:
        group = int(stored["g_idx"][k])
        q = bits_at(stored["qweight"][:, n].tolist(), k, num_bits)
        zero = bits_at(stored["qzeros"][group].tolist(), n, num_bits) + offset
        assert float(stored["scales"][group, n]) * (q - zero) == pytest.approx(float(weight[n, k]))


def test_awq_stores_what_its_definition_reads() -> None:
    scheme = grid_scheme(4, symmetric=False)
    codes = codes_of(scheme)

    stored = LAYOUTS["awq"].encode(codes, scheme)

    weight = codes.dequantize()
    for n, k in _PLACES:
        place = _AWQ_ORDER.index(n % 8)
        q = bits_at([int(stored["qweight"][k, n // 8])], place, 4)
        zero = bits_at([int(stored["qzeros"][k // 32, n // 8])], place, 4)
        assert float(stored["scales"][k // 32, n]) * (q - zero) == pytest.approx(float(weight[n, k]))


def test_gptq_reads_a_last_group_that_is_short() -> None:
    """AutoGPTQ makes ceil(K / g) groups; only the index tells that the last is short."""
    scheme = grid_scheme(4, group_size=64)
    codes = codes_of(scheme, 32, 192)
    assert isinstance(codes, GridCodes)
    stored = LAYOUTS["gptq"].encode(codes, scheme)
    stored = stored | {"qweight": stored["qweight"][:20], "g_idx": stored["g_idx"][:160]}

    back = LAYOUTS["gptq"].decode(MODULE, stored, {"bits": 4}, 32, 160)

    assert torch.equal(back.dequantize(), codes.dequantize()[:, :160])
    del stored["g_idx"]
    with pytest.raises(WorkerError, match="3 groups, which do not divide its 160 columns"):
        LAYOUTS["gptq"].decode(MODULE, stored, {"bits": 4}, 32, 160)


@pytest.mark.parametrize("index", [-1, COLUMNS // 32], ids=["negative", "too-large"])
def test_gptq_names_a_group_that_is_not_there(index: int) -> None:
    scheme = grid_scheme(4)
    stored = LAYOUTS["gptq"].encode(codes_of(scheme), scheme)
    stored["g_idx"][7] = index

    with pytest.raises(WorkerError, match=f"{MODULE} has columns in groups"):
        LAYOUTS["gptq"].decode(MODULE, stored, {"bits": 4}, ROWS, COLUMNS)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 8])
def test_padded_streams_give_back_any_length(num_bits: int) -> None:
    for length in (1, 7, 10, 11, 31, 32, 33, 100):
        values = (torch.arange(3 * length).reshape(3, length) % 2**num_bits).to(torch.uint8)

        words = pack_padded(values, num_bits)

        assert words.shape == (3, -(-length * num_bits // 32))
        assert [bits_at(words[2].tolist(), i, num_bits) for i in range(length)] == values[2].tolist()
        assert torch.equal(unpack_padded(words, num_bits, length), values)


@pytest.mark.parametrize(
    ("layout", "scheme"),
    [
        ("gptq", grid_scheme(4, symmetric=False)),
        ("gptq", W8A8),
        ("awq", grid_scheme(8)),
        ("awq", grid_scheme(4, act_order=True)),
        ("pack-quantized", grid_scheme(4, act_order=True)),
        ("int-quantized", LLM_INT8),
        ("bitsandbytes", grid_scheme(4)),
        ("bitsandbytes", Scheme(kind="nf4", num_bits=4, group_size=96)),
        ("fp8", float8_scheme()),
        ("fp8", float8_scheme(128, activation_bits=None)),
    ],
)
def test_accepts_refuses_what_it_cannot_say(layout: str, scheme: Scheme) -> None:
    assert not LAYOUTS[layout].accepts(scheme)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "awq", "bitsandbytes", "fp8"])
def test_layouts_of_one_scheme_refuse_several(layout: str) -> None:
    groups = [SchemeGroup(scheme=scheme, modules=["a"]) for scheme in (grid_scheme(4), grid_scheme(8))]

    with pytest.raises(WorkerError, match="pack-quantized"):
        LAYOUTS[layout].quantization_config(groups, [])


@pytest.mark.parametrize(
    ("layout", "case", "key"),
    [
        ("awq", "int4-g32-asym", "modules_to_not_convert"),
        ("bitsandbytes", "llm-int8", "llm_int8_skip_modules"),
        ("fp8", "fp8-tile128", "modules_to_not_convert"),
    ],
)
def test_kept_modules_are_named_as_readers_look_them_up(layout: str, case: str, key: str) -> None:
    config = _config(layout, WRITTEN[layout][case], ("lm_head", "experts.3.gate"))

    # bitsandbytes' reader matches patterns; vLLM compares the names of the two others
    expected = r"experts\.\d+\.gate$" if layout == "bitsandbytes" else "experts.3.gate"
    assert sorted(config[key]) == sorted(["lm_head", expected])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "hqq"}, ["'hqq'"]),
        ({"quant_method": "gptq", "bits": 5}, ["'gptq'", "bits 5"]),
        ({"quant_method": "awq", "bits": 4, "version": "marlin"}, ["'awq'", "'marlin'"]),
        ({"quant_method": "fp8", "weight_block_size": [1, 32]}, ["'fp8'", r"\[1, 32\]"]),
        ({"quant_method": "bitsandbytes"}, ["'bitsandbytes'"]),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {
                    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}
                },
            },
            ["'compressed-tensors'", "'nvfp4-pack-quantized'", "'num_bits': 4, 'type': 'float', 'group_size': 16"],
        ),
    ],
)
def test_recognize_names_what_it_cannot_read(config: dict[str, Any], words: list[str]) -> None:
    for word in words:
        with pytest.raises(WorkerError, match=word) as caught:
            recognize(config)
        assert caught.value.code is WorkerErrorCode.UNSUPPORTED_MODEL


def test_recognize_cuts_what_it_says_of_large_configs() -> None:
    with pytest.raises(WorkerError) as caught:
        recognize({"quant_method": "gptq", "bits": 4, "dynamic": {f"layer.{i}": {"bits": 8} for i in range(1000)}})

    assert len(caught.value.message) < 800
