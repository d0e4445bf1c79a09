"""compressed-tensors' layouts against slow readings of the definition, and tensors as other writers store them."""

import pytest
import torch

from tests.workers.checkpoint.layouts.samples import (
    CHANNEL8,
    COLUMNS,
    MODULE,
    ROWS,
    W8A8,
    WRITTEN,
    bits_at,
    codes_of,
    config_of,
    first_group,
    float8_scheme,
    grid_scheme,
)
from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.formats.codes import Float8Codes, GridCodes
from workers.formats.scheme import Scheme
from workers.protocol.errors import WorkerError, WorkerErrorCode

_INT4, _INT4_ASYM = grid_scheme(4), grid_scheme(4, symmetric=False)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "columns", "group_size"), [(ROWS, COLUMNS, 32), (7, 45, 15), (9, 11, -1)])
def test_packed_rows_are_what_the_definition_reads(num_bits: int, rows: int, columns: int, group_size: int) -> None:
    """Also where rows or columns end inside a word."""
    scheme = grid_scheme(num_bits, group_size=group_size, symmetric=False)
    codes = codes_of(scheme, rows, columns)

    stored = LAYOUTS["pack-quantized"].encode(codes, scheme)

    planned = LAYOUTS["pack-quantized"].plan(scheme, rows, columns)
    assert {name: tuple(t.shape) for name, t in stored.items()} == {name: one.shape for name, one in planned.items()}
    assert stored["weight_shape"].tolist() == [rows, columns]
    weight = codes.dequantize()
    for n, k in [(0, 0), (1, 10), (rows - 1, columns - 1), (3, 9), (rows // 2, columns // 2)]:
        group = 0 if group_size == -1 else k // group_size
        signed = bits_at(stored["weight_packed"][n].tolist(), k, num_bits) - 2 ** (num_bits - 1)
        signed_zero = bits_at(stored["weight_zero_point"][:, group].tolist(), n, num_bits) - 2 ** (num_bits - 1)
        assert float(stored["weight_scale"][n, group]) * (signed - signed_zero) == pytest.approx(float(weight[n, k]))
    back = LAYOUTS["pack-quantized"].decode(MODULE, stored, config_of("pack-quantized", (scheme, [])), rows, columns)
    assert torch.equal(back.dequantize(), weight)


def test_symmetric_grids_have_no_zero_points() -> None:
    assert set(LAYOUTS["pack-quantized"].plan(_INT4, ROWS, COLUMNS)) == {
        "weight_packed",
        "weight_scale",
        "weight_shape",
    }


def test_w8a8_and_int8_are_signed_bytes_and_differ_in_the_config_only() -> None:
    codes = codes_of(W8A8)
    assert isinstance(codes, GridCodes)

    stored = LAYOUTS["int-quantized"].encode(codes, W8A8)

    assert torch.equal(stored["weight"].float() * stored["weight_scale"].float(), codes.dequantize())
    rounded, plain = (first_group(config_of("int-quantized", (scheme, []))) for scheme in (W8A8, CHANNEL8))
    assert rounded["weights"] == plain["weights"]
    assert plain["input_activations"] is None
    wanted = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert wanted.items() <= rounded["input_activations"].items()


def test_floats_are_values_times_scales() -> None:
    codes = codes_of(float8_scheme(128), 200, 300)

    stored = LAYOUTS["float-quantized"].encode(codes, float8_scheme(128))

    weight = codes.dequantize()
    assert stored["weight_scale"].shape == (2, 3)
    for n, k in [(0, 0), (127, 128), (128, 127), (199, 299), (60, 256)]:
        expected = float(stored["weight"][n, k].float()) * float(stored["weight_scale"][n // 128, k // 128])
        assert float(weight[n, k]) == pytest.approx(expected)


def test_one_group_is_said_for_all_linears_and_several_by_name() -> None:
    one = config_of("pack-quantized", (_INT4, ["a", "b"]), ignore=("lm_head",))
    two = config_of("pack-quantized", (_INT4, ["a", "b"]), (grid_scheme(8), ["c"]))

    assert first_group(one)["targets"] == ["Linear"]
    assert one["ignore"] == ["lm_head"]
    assert [group["targets"] for group in two["config_groups"].values()] == [["a", "b"], ["c"]]
    assert two["format"] == "pack-quantized"


_MIX = {"a": _INT4_ASYM, "b": CHANNEL8, "c": W8A8, "d": float8_scheme(), "e": float8_scheme(128, activation_bits=None)}


@pytest.mark.parametrize(
    ("layout", "formats"),
    [
        ("pack-quantized", ["pack-quantized", "pack-quantized", "int-quantized", *["float-quantized"] * 2]),
        ("int-quantized", ["pack-quantized", "int-quantized", "int-quantized", *["float-quantized"] * 2]),
    ],
)
def test_modules_of_several_formats_lie_in_one_file(layout: str, formats: list[str]) -> None:
    config = config_of(layout, *((scheme, [name]) for name, scheme in _MIX.items()))

    assert config["format"] == "mixed-precision"
    assert [group["format"] for group in config["config_groups"].values()] == formats
    reader = recognize(config)
    for name, scheme in _MIX.items():
        codes = codes_of(scheme)
        back = reader.decode(name, LAYOUTS[layout].encode(codes, scheme), config, ROWS, COLUMNS)
        assert back.format == codes.format
        assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize(
    ("layout", "scheme", "fitting"),
    [
        ("int-quantized", _INT4, "pack-quantized"),
        ("pack-quantized", W8A8, "int-quantized"),
        ("float-quantized", CHANNEL8, "int-quantized"),
        ("int-quantized", float8_scheme(), "float-quantized"),
    ],
)
def test_a_layout_that_would_hold_nothing_of_its_own_is_refused(layout: str, scheme: Scheme, fitting: str) -> None:
    with pytest.raises(WorkerError, match=f"'{layout}' cannot store.*choose layout '{fitting}'") as caught:
        config_of(layout, (scheme, ["a"]))

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


def test_groups_that_do_not_divide_the_columns_are_refused() -> None:
    with pytest.raises(WorkerError, match="groups of 32 do not divide 40") as caught:
        LAYOUTS["pack-quantized"].plan(_INT4, ROWS, 40)

    assert caught.value.code is WorkerErrorCode.INVALID_REQUEST


# What other writers put into these files.


def test_reads_columns_that_act_order_has_mixed() -> None:
    scheme = grid_scheme(4, act_order=True)
    codes = codes_of(scheme)
    assert isinstance(codes, GridCodes)
    assert codes.group_index is not None
    plain = codes_of(_INT4)
    stored = LAYOUTS["pack-quantized"].encode(plain, _INT4)

    back = LAYOUTS["pack-quantized"].decode(
        MODULE, stored | {"weight_g_idx": codes.group_index}, config_of("pack-quantized", (_INT4, [])), ROWS, COLUMNS
    )

    assert isinstance(back, GridCodes)
    assert isinstance(plain, GridCodes)
    assert back.group_index is not None
    for n, k in [(0, 0), (5, 77), (63, 255)]:
        expected = (float(plain.codes[n, k]) - 8) * float(plain.scale[n, int(codes.group_index[k])])
        assert float(back.dequantize()[n, k]) == pytest.approx(expected)


def test_an_index_that_was_never_filled_means_nothing() -> None:
    codes = codes_of(_INT4)
    stored = LAYOUTS["pack-quantized"].encode(codes, _INT4)
    stored["weight_g_idx"] = torch.full((COLUMNS,), -1, dtype=torch.int32)

    back = LAYOUTS["pack-quantized"].decode(MODULE, stored, config_of("pack-quantized", (_INT4, [])), ROWS, COLUMNS)

    assert torch.equal(back.dequantize(), codes.dequantize())


def test_reads_three_bits_in_words_of_ten() -> None:
    """As earlier versions of the library packed them."""
    scheme = grid_scheme(3, symmetric=False)
    codes = codes_of(scheme)
    assert isinstance(codes, GridCodes)
    words = torch.zeros(ROWS, 26, dtype=torch.int32)
    zeros = torch.zeros(7, COLUMNS // 32, dtype=torch.int32)
    for column in range(COLUMNS):
        words[:, column // 10] |= codes.codes[:, column].to(torch.int32) << (3 * (column % 10))
    for row in range(ROWS):
        zeros[row // 10] |= codes.zero[row].to(torch.int32) << (3 * (row % 10))
    stored = {"weight_packed": words, "weight_scale": codes.scale, "weight_zero_point": zeros}

    back = LAYOUTS["pack-quantized"].decode(MODULE, stored, config_of("pack-quantized", (scheme, [])), ROWS, COLUMNS)

    assert torch.equal(back.dequantize(), codes.dequantize())


def test_reads_zero_points_that_were_not_packed() -> None:
    codes = codes_of(_INT4_ASYM)
    assert isinstance(codes, GridCodes)
    stored = LAYOUTS["pack-quantized"].encode(codes, _INT4_ASYM)
    stored["weight_zero_point"] = (codes.zero.to(torch.int16) - 8).to(torch.int8)

    back = LAYOUTS["pack-quantized"].decode(
        MODULE, stored, config_of("pack-quantized", (_INT4_ASYM, [])), ROWS, COLUMNS
    )

    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_reads_bytes_in_groups_with_zero_points(symmetric: bool) -> None:
    scheme = grid_scheme(8, symmetric=symmetric)
    codes = codes_of(scheme)
    assert isinstance(codes, GridCodes)
    config = config_of("int-quantized", (CHANNEL8, []))
    first_group(config)["weights"] |= {"strategy": "group", "group_size": 32, "symmetric": symmetric}
    stored = {
        "weight": codes.signed(),
        "weight_scale": codes.scale.to(torch.float32),
        "weight_zero_point": (codes.zero.to(torch.int16) - 128).to(torch.int8),
    }

    back = recognize(config).decode(MODULE, stored, config, ROWS, COLUMNS)

    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", ["int-quantized", "float-quantized"])
def test_reads_one_scale_for_a_tensor(layout: str, shape: tuple[int, ...]) -> None:
    scheme = CHANNEL8 if layout == "int-quantized" else float8_scheme()
    codes = codes_of(scheme)
    stored = LAYOUTS[layout].encode(codes, scheme) | {"weight_scale": torch.full(shape, 0.25)}
    config = config_of(layout, (scheme, []))
    first_group(config)["weights"]["strategy"] = "tensor"

    back = recognize(config).decode(MODULE, stored, config, ROWS, COLUMNS)

    assert isinstance(back, GridCodes | Float8Codes)
    # Layers want a number for every row.
    assert back.scale.shape == (ROWS, 1)
    assert torch.equal(back.dequantize(), stored["weight"].to(torch.float32) * 0.25)


def test_reads_static_activation_scales_as_dynamic_ones() -> None:
    codes = codes_of(float8_scheme())
    stored = LAYOUTS["float-quantized"].encode(codes, float8_scheme()) | {"input_scale": torch.ones(1)}
    config = config_of("float-quantized", (float8_scheme(), []))
    first_group(config)["input_activations"] |= {"dynamic": False, "strategy": "tensor"}

    back = recognize(config).decode(MODULE, stored, config, ROWS, COLUMNS)

    assert isinstance(back, Float8Codes)
    assert back.has_dynamic_activations


def test_every_written_config_is_recognized_as_its_layout() -> None:
    for layout in ("pack-quantized", "int-quantized", "float-quantized"):
        for scheme in WRITTEN[layout].values():
            assert recognize(config_of(layout, (scheme, ["a"]))) is LAYOUTS[layout]
