"""Floating-point linears on the CPU, with their weights laid out for the products that serving makes.

nn.Linear keeps a weight row by row, (N, K), and the CPU's libraries lay it out anew inside every product with more than
one row. That is paid once here. Measured on two AVX512/AMX cores with weights in the third-level cache, 4864 x 896:
bf16 in oneDNN's own layout takes 0.7 (1 row), 0.5 (8 rows) and 0.5 (64 rows) of nn.Linear's time; fp32 stored as
(K, N) takes 0.9, 0.7 and 0.6. Where one row is bound by main memory nothing is gained and nothing lost.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The layout depends on the rows to expect. Decoding a few streams is the case that counts.
_EXPECTED_ROWS = 8


class OneDnnLinear(nn.Module):
    """y = x W^T + b in bf16, W in oneDNN's layout."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        # No parameter: the tensor is opaque, nothing but the product can read it.
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _EXPECTED_ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K), bf16. Returns (..., N), bf16."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")
        return result


class TransposedLinear(nn.Module):
    """y = x W^T + b with W stored as (K, N)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        self.weight_t = nn.Parameter(linear.weight.detach().t().contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K). Returns (..., N) in x's dtype."""
        return functional.linear(x, self.weight_t.t(), self.bias)


class _WatchedLinear(nn.Linear):
    """Notices whether it is called, and whether anybody else reads its weight."""

    is_called = False
    is_read = False
    _is_inside = False

    def forward(self, x: Tensor) -> Tensor:
        self.is_called = self._is_inside = True
        result = super().forward(x)
        self._is_inside = False
        return result

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name == "weight" and not self._is_inside:
            self.is_read = True
        return super().__getattr__(name)


def prepack_linears(model: nn.Module) -> int:
    """Replace the floating-point linears of a causal LM on the CPU; returns how many were.

    One at a time, so memory grows by one weight. Linears whose weight is shared (a tied head), read by other code than
    their own forward, or not used while four tokens are written stay as they are. Other devices: nothing happens.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if not linears or next(iter(linears.values())).weight.device.type != "cpu":
        return 0
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    alone = {name: linear for name, linear in linears.items() if owners[id(linear.weight)] == 1}
    packed = 0
    for name in _only_called(model, alone):
        replacement = _replacement(alone.pop(name))
        if replacement is not None:
            model.set_submodule(name, replacement.eval())
            packed += 1
    return packed


def _replacement(linear: nn.Linear) -> nn.Module | None:
    if linear.weight.dtype is torch.bfloat16 and has_bf16_layout():
        return OneDnnLinear(linear)
    return TransposedLinear(linear) if linear.weight.dtype is torch.float32 else None


def has_bf16_layout() -> bool:
    """True if this torch has oneDNN's prepacked products and this CPU multiplies bf16 without a detour."""
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())


@torch.inference_mode()
def _only_called(model: nn.Module, linears: dict[str, nn.Linear]) -> list[str]:
    """Names of the linears that a few tokens pass through and whose weight nothing else reads."""
    watched: dict[str, _WatchedLinear] = {}
    try:
        for name, linear in linears.items():
            linear.__class__ = _WatchedLinear
            assert isinstance(linear, _WatchedLinear)
            watched[name] = linear
        # With the cache too: some models read weights directly when they continue a text.
        prompt = torch.zeros(1, 2, dtype=torch.int64)
        untyped: Any = model
        mask = torch.ones_like(prompt)
        untyped.generate(prompt, attention_mask=mask, min_new_tokens=2, max_new_tokens=2, pad_token_id=0)
        return [name for name, linear in watched.items() if linear.is_called and not linear.is_read]
    finally:
        for linear in watched.values():
            for note in ("is_called", "is_read", "_is_inside"):
                linear.__dict__.pop(note, None)
            linear.__class__ = nn.Linear  # type: ignore[assignment]  # back to what it was
