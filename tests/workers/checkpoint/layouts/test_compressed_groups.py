"""What compressed-tensors' configs may say, and which group a module belongs to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.workers.checkpoint.layouts.samples import (
    CHANNEL8,
    COLUMNS,
    MODULE,
    ROWS,
    codes_of,
    config_of,
    first_group,
    grid_scheme,
)
from workers.checkpoint.layouts.table import LAYOUTS, recognize
from workers.formats.codes import GridCodes
from workers.protocol.errors import WorkerError, WorkerErrorCode

_INT4 = grid_scheme(4)


def _naive(config: dict[str, Any]) -> None:
    config["format"] = "naive-quantized"
    del first_group(config)["format"]


def _short(config: dict[str, Any]) -> None:
    """What the library leaves out because it is the default."""
    for name in ("actorder", "block_structure", "dynamic", "observer", "observer_kwargs", "symmetric", "type"):
        del first_group(config)["weights"][name]


def _without_strategy(config: dict[str, Any]) -> None:
    del first_group(config)["weights"]["strategy"]
    first_group(config)["weights"]["group_size"] = -1


def _with_kv_cache(config: dict[str, Any]) -> None:
    config["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    config["config_groups"]["group_1"] = {"targets": ["re:.*k_proj"], "output_activations": {"num_bits": 8}}
    config |= {"sparsity_config": {"format": "dense"}, "transform_config": {}}


@pytest.mark.parametrize("change", [_naive, _short, _without_strategy, _with_kv_cache])
def test_reads_configs_that_say_the_same_in_other_words(change: Callable[[dict[str, Any]], None]) -> None:
    codes = codes_of(CHANNEL8)
    stored = LAYOUTS["int-quantized"].encode(codes, CHANNEL8)
    config = config_of("int-quantized", (CHANNEL8, []))

    change(config)

    assert recognize(config) is LAYOUTS["int-quantized"]
    back = recognize(config).decode(MODULE, stored, config, ROWS, COLUMNS)
    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"type": "float", "num_bits": 4}},
        {"weights": {"strategy": "tensor_group", "group_size": 16}},
        {"weights": {"num_bits": 9}},
        {"weights": {"num_bits": "8"}},
        {"weights": {"strategy": "group", "group_size": 0}},
        {"format": "marlin-24"},
        {"input_activations": {"num_bits": 4, "type": "int"}},
        {"input_activations": {"num_bits": 8, "type": "float"}},
        {"input_activations": {"num_bits": 8, "type": "int", "symmetric": False}},
        {"targets": "Linear"},
        {"weights": None},
    ],
    ids=str,
)
def test_groups_that_cannot_be_read_are_recognized_as_such(change: dict[str, Any]) -> None:
    config = config_of("int-quantized", (CHANNEL8, []))
    group = first_group(config)
    for name, value in change.items():
        group[name] = group[name] | value if name == "weights" and value else value

    with pytest.raises(WorkerError, match="slimserve reads"):
        recognize(config)


@pytest.mark.parametrize("change", [{"ignore": [7]}, {"ignore": "lm_head"}, {"config_groups": []}], ids=str)
def test_configs_that_are_built_otherwise_are_recognized_as_such(change: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match="slimserve reads"):
        recognize(config_of("int-quantized", (CHANNEL8, [])) | change)


@pytest.mark.parametrize(
    "more",
    [
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
    ],
    ids=str,
)
def test_sparse_or_rotated_checkpoints_are_not_read_as_if_they_were_not(more: dict[str, Any]) -> None:
    with pytest.raises(WorkerError, match=next(iter(more))):
        recognize(config_of("int-quantized", (CHANNEL8, [])) | more)


# Which group a module belongs to.


def _four_or_eight(four: list[str], eight: list[str], ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    config = config_of("pack-quantized", (_INT4, four), (grid_scheme(8), eight), ignore=ignore)
    assert recognize(config) is LAYOUTS["pack-quantized"]
    return config


@pytest.mark.parametrize(
    ("four", "eight", "num_bits"),
    [
        ([MODULE], ["re:.*up_proj"], 4),
        (["Linear"], ["re:model.*up_proj"], 8),
        (["re:.*gate_proj", "re:.*up"], ["Linear"], 4),
        (["re:layers"], ["Linear"], 8),
        (["model.layers.0.mlp"], ["Linear"], 8),
    ],
    ids=["name-before-pattern", "pattern-before-class", "pattern-from-the-start", "no-search", "no-prefix"],
)
def test_a_module_belongs_to_the_nearest_target(four: list[str], eight: list[str], num_bits: int) -> None:
    scheme = grid_scheme(num_bits)
    codes = codes_of(scheme)

    back = LAYOUTS["pack-quantized"].decode(
        MODULE, LAYOUTS["pack-quantized"].encode(codes, scheme), _four_or_eight(four, eight), ROWS, COLUMNS
    )

    assert isinstance(back, GridCodes)
    assert back.num_bits == num_bits
    assert torch.equal(back.dequantize(), codes.dequantize())


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (_four_or_eight(["Linear"], ["a"], ("re:.*up_proj",)), "config.json says that it is not"),
        (_four_or_eight(["Linear"], ["a"], (MODULE,)), "config.json says that it is not"),
        (_four_or_eight(["a"], ["b"]), "no group in config.json"),
        (_four_or_eight(["re:("], ["b"]), "bad pattern 're:\\('"),
    ],
    ids=["ignored-by-pattern", "ignored-by-name", "no-group", "bad-pattern"],
)
def test_a_module_without_a_group_is_named(config: dict[str, Any], problem: str) -> None:
    stored = LAYOUTS["pack-quantized"].encode(codes_of(_INT4), _INT4)

    with pytest.raises(WorkerError, match=f"{MODULE} .*{problem}") as caught:
        LAYOUTS["pack-quantized"].decode(MODULE, stored, config, ROWS, COLUMNS)

    assert caught.value.code is WorkerErrorCode.VARIANT_CORRUPT


def test_a_single_group_needs_no_names() -> None:
    """Targets may be names of transformers' modules where the files have others."""
    codes = codes_of(_INT4)
    config = config_of("pack-quantized", (_INT4, []))
    first_group(config)["targets"] = ["re:language_model.*"]

    back = LAYOUTS["pack-quantized"].decode(
        MODULE, LAYOUTS["pack-quantized"].encode(codes, _INT4), config, ROWS, COLUMNS
    )

    assert torch.equal(back.dequantize(), codes.dequantize())
