"""The experts of a mixture as linears of their own.

transformers keeps the experts of a layer fused, one 3-D parameter per product. `SplitExperts` takes the place of such a
module: called alike, the same numbers, and one linear per expert and product, which is compressed, stored and replaced
as every other linear is. Which stored tensor belongs to which linear is no matter of this file
(checkpoint/stored_names.py).
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from workers.formats.linear import frozen
from workers.protocol.errors import WorkerError, WorkerErrorCode

# What transformers fuses: parameter (experts, rows of all its parts, columns) -> its parts, the first rows first.
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "up_proj": ("up_proj",), "down_proj": ("down_proj",)}
# Set by transformers' `use_experts_implementation`. A module that has them computes what they say and nothing else:
# transformers itself replaces its forward by a general one.
_FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")


class SplitExperts(nn.Module):
    """Stands for a fused experts module. Its linears are named `3.gate_proj`, `3.up_proj` and `3.down_proj`.

    They share memory with the parameters of `fused`. Attributes and other submodules (activation, norm) are taken over
    under their names, as the architecture's own gating reads them.
    """

    num_experts: int
    has_gate: bool
    has_post_expert_norm: bool = False
    post_expert_norm: nn.Module

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        kind: Any = type(fused)
        for name, value in vars(fused).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        for name, child in fused.named_children():
            self.add_module(name, child)
        self._gate: Callable[[nn.Module, Tensor], Tensor] = kind._apply_gate if self.has_gate else _activate_only
        weights = _part_weights(fused)
        for number in range(self.num_experts):
            self.add_module(str(number), Expert({name: stacked[number] for name, stacked in weights.items()}))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: (tokens, hidden). top_k_index, top_k_weights: (tokens, K). Returns (tokens, hidden).

        A token's parts are added in the order of its experts, whoever else is in the batch. Indices beyond the last
        expert count for nothing.
        """
        num_top_k = top_k_index.shape[-1]
        chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
        edges = torch.arange(self.num_experts + 1, dtype=chosen.dtype, device=chosen.device)
        # the only wait for the device
        bounds: list[int] = torch.searchsorted(chosen, edges).tolist()
        tokens = order // num_top_k
        weights = top_k_weights.reshape(-1, 1)[order]
        # fp32: rounded to bf16 after each of its experts, a token would lose a bit or two to the order of sums
        total = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, torch.float32))
        for number, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            rows = tokens[start:end]
            part = self._run(number, hidden_states[rows]) * weights[start:end]
            total.index_add_(0, rows, part.to(total.dtype))
        return total.to(hidden_states.dtype)

    def _run(self, number: int, x: Tensor) -> Tensor:
        """x: (tokens, hidden), of the tokens that chose this expert. Returns (tokens, hidden), not yet weighted."""
        expert = self._modules[str(number)]
        assert isinstance(expert, Expert)
        out: Tensor = expert.down_proj(self._gate(self, expert.widen(x)))
        return self.post_expert_norm(out) if self.has_post_expert_norm else out


class Expert(nn.Module):
    """The linears of one expert. gate_proj: None where the architecture has no gate."""

    gate_proj: nn.Module | None
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.add_module(name, _linear(weight))

    def widen(self, x: Tensor) -> Tensor:
        """What the architecture's gating takes: gate and up side by side, or up alone."""
        up: Tensor = self.up_proj(x)
        if "gate_proj" not in self._modules:
            return up
        assert self.gate_proj is not None
        return torch.cat((self.gate_proj(x), up), dim=-1)


def fused_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of all experts that are one 3-D parameter per product."""
    return {
        name: module
        for name, module in model.named_modules()
        if (down := module._parameters.get("down_proj")) is not None and down.dim() == 3
    }


def fused_parts(experts: nn.Module) -> dict[str, tuple[str, ...]]:
    """Fused parameter of a module -> the linears that its rows become."""
    return {name: parts for name, parts in _PARTS.items() if experts._parameters.get(name) is not None}


def reason_to_keep_fused(experts: nn.Module) -> str | None:
    """Why a fused experts module cannot be split; None: it can."""
    if not all(hasattr(experts, flag) for flag in _FLAGS):
        return f"{type(experts).__name__} computes its experts in a way of its own"
    untyped: Any = experts
    if untyped.is_transposed or untyped.has_bias or not untyped.is_concatenated:
        return f"{type(experts).__name__} has transposed, interleaved or biased experts, which no checkpoint splits"
    return None


def split_experts(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, str]:
    """Replace fused experts modules by split ones; names: these only. Returns name -> reason of those that stay.

    model: on any device; on the meta device it stays there.
    """
    wanted = None if names is None else set(names)
    reasons = {}
    for name, module in fused_experts(model).items():
        if wanted is not None and name not in wanted:
            continue
        if reason := reason_to_keep_fused(module):
            reasons[name] = reason
        else:
            model.set_submodule(name, SplitExperts(module))
    return reasons


def fill_experts(
    model: nn.Module,
    names: Mapping[str, str],
    read: Callable[[str], Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give linears of split experts their weights, one at a time. names: stored tensor -> linear of the model.

    Linears are filled where they are, so that who holds one sees its weight; anything else in a linear's place, an
    empty place for instance, gives way to a linear. What `read` returns is kept, not copied, if device and dtype fit.
    Raises WorkerError (variant_corrupt) for a weight of another shape.
    """
    for stored, name in names.items():
        place: Any = model.get_submodule(name)
        weight = read(stored)
        if weight.shape != (place.out_features, place.in_features):
            raise WorkerError(
                WorkerErrorCode.VARIANT_CORRUPT,
                f"tensor {stored!r} is {tuple(weight.shape)}, the model has {(place.out_features, place.in_features)}",
            )
        weight = weight.to(device, dtype)
        if isinstance(place, nn.Linear):
            place.weight = frozen(weight)
        else:
            model.set_submodule(name, _linear(weight))


def _part_weights(fused: nn.Module) -> dict[str, Tensor]:
    """Part -> its weights of all experts: (experts, out_features, in_features)."""
    weights: dict[str, Tensor] = {}
    for name, parts in fused_parts(fused).items():
        weights |= zip(parts, fused.get_parameter(name).detach().chunk(len(parts), dim=1), strict=True)
    return weights


def _linear(weight: Tensor) -> nn.Linear:
    """weight: (out_features, in_features)."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear.weight = frozen(weight)
    return linear.eval()


def _activate_only(experts: Any, projected: Tensor) -> Tensor:
    """In the place of a gating, for architectures without."""
    activated: Tensor = experts.act_fn(projected)
    return activated
