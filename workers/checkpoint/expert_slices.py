"""Checkpoints that store all experts of a layer in one tensor, seen as if each expert had tensors of its own.

The rows of one expert lie together in such a file, so a slice is a tensor header like any other, with its own place in
the file: whoever reads, compresses or copies tensors by their headers need not know.
"""

from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.checkpoint.headers import BITS, CheckpointHeaders, TensorHeader
from workers.checkpoint.stored_names import LoadRules
from workers.formats.experts import fused_experts, fused_parts, reason_to_keep_fused


def slice_experts(model: PreTrainedModel, headers: CheckpointHeaders) -> CheckpointHeaders:
    """Put one header per expert and linear in the place of fused ones, where all of a layer can be cut.

    model: with fused experts, on any device. The new names are those of checkpoints that never were fused:
    `...experts.gate_up_proj` becomes `...experts.3.gate_proj.weight` and so on.
    """
    rules = LoadRules(model)
    # what the model takes as it is stored
    stored: dict[str, TensorHeader] = {}
    for name, header in headers.tensors.items():
        parameter, pattern = rules.destination(name)
        if pattern is None:
            stored[parameter] = header
    slices: dict[str, list[TensorHeader]] = {}
    for path, experts in fused_experts(model).items():
        if reason_to_keep_fused(experts) is None:
            slices |= _slices_of(rules, path, experts, stored)
    tensors = {one.name: one for name, header in headers.tensors.items() for one in slices.get(name, [header])}
    return replace(headers, tensors=tensors)


def _slices_of(
    rules: LoadRules, path: str, experts: nn.Module, stored: dict[str, TensorHeader]
) -> dict[str, list[TensorHeader]]:
    """Name of each fused tensor of one module -> its slices; nothing if one of them cannot be cut."""
    slices: dict[str, list[TensorHeader]] = {}
    for last, parts in fused_parts(experts).items():
        fused = f"{path}.{last}"
        header = stored.get(fused)
        if header is None or not _is_held_alike(header, experts.get_parameter(last)):
            return {}
        cut = _cut(header, _stem(header.name, last, path), parts)
        if not all(rules.destination(one.name)[0] in {fused, *rules.expert_weights} for one in cut):
            return {}
        slices[header.name] = cut
    return slices


def _is_held_alike(header: TensorHeader, parameter: Tensor) -> bool:
    """Whether a file holds a parameter as the model does, not transposed for instance, in whole bytes."""
    return header.shape == tuple(parameter.shape) and BITS[header.dtype] % 8 == 0


def _stem(stored: str, last: str, path: str) -> str:
    """What the names of a fused tensor's experts begin with: the stored name's own beginning, if it ends as ours."""
    name = stored.removesuffix(".weight")
    return name.removesuffix(f".{last}") if name.endswith(f".{last}") else path


def _cut(header: TensorHeader, stem: str, parts: tuple[str, ...]) -> list[TensorHeader]:
    """One header per expert and part, in the order of their bytes."""
    num_experts, num_rows, num_columns = header.shape
    num_bytes = header.num_bytes // (num_experts * len(parts))
    return [
        replace(
            header,
            name=f"{stem}.{number}.{part}.weight",
            shape=(num_rows // len(parts), num_columns),
            start=header.start + (number * len(parts) + index) * num_bytes,
            num_bytes=num_bytes,
        )
        for number in range(num_experts)
        for index, part in enumerate(parts)
    ]
