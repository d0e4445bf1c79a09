"""Floating-point linears on the CPU, with their weights laid out for the products that serving makes.

nn.Linear keeps a weight row by row, (N, K), and the CPU's libraries lay it out anew inside every product with more than
one row. That is paid once here. Measured on two AVX512/AMX cores with weights in the third-level cache, 4864 x 896:
bf16 in oneDNN's own layout takes 0.7 (1 row), 0.5 (8 rows) and 0.5 (64 rows) of nn.Linear's time. In fp32 nn.Linear
asks MKL; on two cores of an EPYC (Zen 5), 3072 x 1024, oneDNN takes 0.6, 0.4 and 0.4 of its time. Where one row is
bound by main memory nothing is gained and nothing lost.

The second reason is that oneDNN sums a row in one order, alone and among others, where MKL has another one for fewer
than 4 rows a thread. So it also gets weights that are shared (a tied head) and must keep their layout. A single row has
an order of its own if it is long, or if an fp32 weight keeps its layout: then it is computed as two.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

# The layout depends on the rows to expect. Decoding a few streams is the case that counts.
_EXPECTED_ROWS = 8
# Up to here oneDNN sums a single row in the order of several; in one of 2816 it does not.
_MOST_COLUMNS_OF_ONE_ROW = 1024


class OneDnnLinear(nn.Module):
    """y = x W^T + b by oneDNN, in fp32 or bf16.

    is_shared: the weight stays as it is, (N, K), and nothing is copied; else it is kept in oneDNN's own layout.
    """

    def __init__(self, linear: nn.Linear, *, is_shared: bool = False) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.bias = linear.bias
        weight = linear.weight.detach()
        # No parameter: in its own layout the tensor is opaque, nothing but the product can read it.
        self._weight: Tensor = weight if is_shared else torch.ops.mkldnn._reorder_linear_weight(weight, _EXPECTED_ROWS)
        is_plain_fp32 = is_shared and weight.dtype is torch.float32
        self._doubles_one_row = is_plain_fp32 or self.in_features > _MOST_COLUMNS_OF_ONE_ROW

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., K). Returns (..., N) in x's dtype."""
        is_single = self._doubles_one_row and x.numel() == self.in_features
        rows = x.reshape(1, -1).repeat(2, 1) if is_single else x
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return result[:1].view(*x.shape[:-1], -1) if is_single else result


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

    One at a time, so memory grows by one weight. Linears whose weight is read by other code than their own forward, or
    not used while four tokens are written, stay as they are, and so does the layout of a weight that is shared (a tied
    head). Other devices: nothing happens.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if not linears or next(iter(linears.values())).weight.device.type != "cpu":
        return 0
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    shared = {name for name, linear in linears.items() if owners[id(linear.weight)] > 1}
    packed = 0
    for name in _only_called(model, linears):
        replacement = _replacement(linears.pop(name), is_shared=name in shared)
        if replacement is not None:
            model.set_submodule(name, replacement.eval())
            packed += 1
    return packed


def _replacement(linear: nn.Linear, *, is_shared: bool) -> nn.Module | None:
    return OneDnnLinear(linear, is_shared=is_shared) if linear.weight.dtype in onednn_dtypes() else None


def onednn_dtypes() -> list[torch.dtype]:
    """What this torch's oneDNN multiplies on this CPU without a detour."""
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_reorder_linear_weight") and hasattr(ops, "_linear_pointwise")):
        return []
    has_bf16 = hasattr(ops, "_is_mkldnn_bf16_supported") and bool(ops._is_mkldnn_bf16_supported())
    return [torch.float32, torch.bfloat16] if has_bf16 else [torch.float32]


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
