"""Linears laid out for decoding give what nn.Linear gives, and only those that nobody else looks into are replaced."""

import pytest
import torch
from torch import nn

from tests.workers.engine.architectures import build
from tests.workers.kernels.bounds import random
from workers.device import cpu_has_fast_bf16
from workers.formats.prepacked import OneDnnLinear, onednn_dtypes, prepack_linears

NUM_ROWS = 300


def own_dtypes() -> list[torch.dtype]:
    """Those of a load with dtype auto. Without bf16 instructions oneDNN emulates them, in whatever order."""
    return [torch.float32, torch.bfloat16] if cpu_has_fast_bf16() else [torch.float32]


@pytest.mark.parametrize("is_shared", [False, True], ids=["own-layout", "shared"])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("num_rows", [0, 1, 8, 70])
@pytest.mark.parametrize("dtype", onednn_dtypes(), ids=str)
def test_product_is_that_of_nn_linear(dtype: torch.dtype, num_rows: int, has_bias: bool, is_shared: bool) -> None:
    linear = nn.Linear(96, 72, bias=has_bias, dtype=dtype).requires_grad_(False)
    packed = OneDnnLinear(linear, is_shared=is_shared)
    x = random(2, num_rows, 96, dtype=dtype)

    result = packed(x)

    assert (result.shape, result.dtype) == ((2, num_rows, 72), dtype)
    # the same sums in another order, rounded once
    torch.testing.assert_close(result, linear(x), rtol=2 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("num_columns", [96, 1024, 4864])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own-layout", "shared"])
@pytest.mark.parametrize("dtype", own_dtypes(), ids=str)
def test_row_is_the_same_to_the_bit_alone_and_among_others(
    dtype: torch.dtype, is_shared: bool, num_columns: int
) -> None:
    linear = nn.Linear(num_columns, 200, bias=False, dtype=dtype).requires_grad_(False)
    packed = OneDnnLinear(linear, is_shared=is_shared)
    x = random(NUM_ROWS, num_columns, dtype=dtype)
    together = packed(x)

    for first, last in ((0, 1), (0, 2), (0, 3), (0, 5), (0, 9), (0, 33), (20, 21), (100, 164), (250, 300)):
        assert torch.equal(packed(x[first:last]), together[first:last]), f"rows {first} to {last}"


@pytest.mark.parametrize("dtype", onednn_dtypes(), ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "deepseek_v3", "falcon_h1", "gpt2", "mamba2"])
def test_model_keeps_its_logits(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype=dtype).requires_grad_(False)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = model(ids).logits

        num_packed = prepack_linears(model)

        logits = model(ids).logits
    assert num_packed == sum(isinstance(module, OneDnnLinear) for module in model.modules())
    # each of a few dozen products rounds once, to other last digits
    assert (logits - expected).square().mean().sqrt() <= 16 * torch.finfo(dtype).eps * expected.std()


@pytest.mark.parametrize("dtype", onednn_dtypes(), ids=str)
def test_a_tied_head_keeps_its_layout_and_takes_no_memory(dtype: torch.dtype) -> None:
    model = build("llama", dtype=dtype)
    weight = model.lm_head.weight = model.get_input_embeddings().weight

    prepack_linears(model.requires_grad_(False))

    assert [name for name, module in model.named_modules() if type(module) is nn.Linear] == []
    assert model.lm_head._weight.data_ptr() == weight.data_ptr()


def test_a_weight_that_is_read_by_other_code_stays() -> None:
    model = build("llama").requires_grad_(False)
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) + 0 * mlp.up_proj.weight.sum()

    prepack_linears(model)

    assert type(mlp.up_proj) is nn.Linear
    assert isinstance(mlp.gate_proj, OneDnnLinear)
