"""What compressed-tensors says in config.json about modules: groups of targets, each with its numbers.

A group's numbers are a `Scheme`, both ways. Which tensors then lie in the file its `format` says.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workers.checkpoint.layouts.stored import StoredLinear
from workers.formats.scheme import Scheme

_KINDS = {"int": "grid", "float": "float8"}
_CLASS = "Linear"
# Activation scales fixed beforehand ("dynamic": false) are read as if they were made per token: each token is then
# rounded by its own absmax, which is finer than one scale for all.
_ACTIVATION_STRATEGIES = ("token", "tensor", "group")


def group_of(scheme: Scheme, format: str, targets: Sequence[str]) -> dict[str, Any]:
    """One entry of config_groups, as the library writes it."""
    kind = "int" if scheme.kind == "grid" else "float"
    weights = _arguments(scheme.num_bits, kind, "channel") | {"symmetric": scheme.symmetric, "observer": "minmax"}
    if scheme.group_size > 0 and scheme.kind == "float8":
        weights |= {"strategy": "block", "block_structure": [scheme.group_size] * 2}
    elif scheme.group_size > 0:
        weights |= {"strategy": "group", "group_size": scheme.group_size}
    inputs = None
    if scheme.activation_bits is not None:
        inputs = _arguments(scheme.activation_bits, kind, "token") | {"dynamic": True}
        if weights["strategy"] == "block":
            # Readers know tiles with runs of activations that are as long (the library's preset FP8_BLOCK).
            inputs |= {"strategy": "group", "group_size": scheme.group_size}
    return {
        "targets": list(targets),
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
        # Said here too: from the weights alone the library may infer another format.
        "format": format,
    }


def _arguments(num_bits: int, kind: str, strategy: str) -> dict[str, Any]:
    return {
        "num_bits": num_bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": None,
        "dynamic": False, "actorder": None, "block_structure": None, "observer": None, "observer_kwargs": {},
    }  # fmt: skip


def read_groups(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]] | None:
    """The groups that compress weights, by name; None if the config has none or is not built as it should be."""
    groups = config.get("config_groups")
    if not _are_names(config.get("ignore") or []):
        return None
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        return None
    # A group may be about activations or the KV cache alone: those stay as they are, which is finer.
    compressing = {name: group for name, group in groups.items() if group.get("weights") is not None}
    are_named = all(_are_names(group.get("targets")) for group in compressing.values())
    return compressing if compressing and are_named else None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def has_more(config: Mapping[str, Any]) -> bool:
    """Whether weights are sparse or activations rotated besides: then the groups are not all there is to know."""
    sparsity, transform = (config.get(name) or {} for name in ("sparsity_config", "transform_config"))
    is_sparse = isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense")
    return is_sparse or (isinstance(transform, Mapping) and bool(transform.get("config_groups")))


def read_format(group: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The group's own format, or that of the whole file."""
    return str(group.get("format") or config.get("format"))


def read_scheme(group: Mapping[str, Any]) -> Scheme | None:
    """A group's numbers; None for those that no `Scheme` can say. One scale per tensor is read as one per row."""
    weights, inputs = group["weights"], group.get("input_activations")
    if not isinstance(weights, Mapping) or not (inputs is None or isinstance(inputs, Mapping)):
        return None
    kind = str(weights.get("type", "int")).lower()
    size = _group_size(weights, kind)
    if kind not in _KINDS or size is None or type(weights.get("num_bits", 8)) is not int:
        return None
    if inputs is not None and not _is_read(inputs, kind):
        return None
    return Scheme(
        kind="grid" if kind == "int" else "float8",
        num_bits=weights.get("num_bits", 8),
        group_size=size,
        symmetric=weights.get("symmetric", True) is not False,
        activation_bits=None if inputs is None else 8,
    )


def _group_size(weights: Mapping[str, Any], kind: str) -> int | None:
    """As in `Scheme`."""
    size, block = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "group" if type(size) is int and size > 0 else "channel"
    strategy = str(strategy).lower()
    if strategy in ("channel", "tensor"):
        return -1
    if strategy == "group" and kind == "int" and type(size) is int and size > 0:
        return size
    if strategy == "block" and kind == "float" and isinstance(block, list) and len(block) == 2:
        return block[0] if block[0] == block[1] and type(block[0]) is int and block[0] > 0 else None
    return None


def _is_read(inputs: Mapping[str, Any], kind: str) -> bool:
    """Whether rounding each token to symmetric 8-bit numbers of the weights' kind is what these arguments mean."""
    is_alike = inputs.get("num_bits", 8) == 8 and str(inputs.get("type", "int")).lower() == kind
    strategy = str(inputs.get("strategy") or "token").lower()
    return is_alike and inputs.get("symmetric", True) is not False and strategy in _ACTIVATION_STRATEGIES


def find_group(held: StoredLinear, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The group of a module: by its exact name, by a pattern, by being a linear, in this order as in the library.

    Raises WorkerError (variant_corrupt) if the module is to be ignored, or no group is meant for it.
    """
    groups = read_groups(config)
    assert groups is not None, "matches() has read them"
    if any(_names(target, held) for target in config.get("ignore") or ()):
        raise held.corrupt("is compressed in the files, and config.json says that it is not")
    owners = {target: group for group in groups.values() for target in group["targets"]}
    patterns = (target for target in sorted(owners) if target.startswith("re:") and _names(target, held))
    for target in (held.module, *patterns, _CLASS):
        if target in owners:
            return owners[target]
    # Where transformers renamed modules, targets may be the new names. A single group needs none.
    if len(groups) == 1:
        return next(iter(groups.values()))
    raise held.corrupt("is compressed in the files, and no group in config.json is meant for it")


def _names(target: str, held: StoredLinear) -> bool:
    if not target.startswith("re:"):
        return target == held.module
    try:
        return re.match(target.removeprefix("re:"), held.module) is not None
    except re.error as error:
        raise held.corrupt(f"cannot be looked up: config.json has the bad pattern {target!r}") from error
