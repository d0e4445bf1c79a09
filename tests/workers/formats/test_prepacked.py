"""Linears laid out for decoding give what nn.Linear gives, and only those that nobody else looks into are replaced."""

import pytest
import torch
from torch import nn

from tests.workers.engine.architectures import build
from tests.workers.kernels.bounds import random
from workers.formats.prepacked import OneDnnLinear, TransposedLinear, has_bf16_layout, prepack_linears

PREPACKED = (OneDnnLinear, TransposedLinear)


def dtypes() -> list[torch.dtype]:
    return [torch.float32, torch.bfloat16] if has_bf16_layout() else [torch.float32]


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("num_rows", [0, 1, 8, 70])
@pytest.mark.parametrize("dtype", dtypes(), ids=str)
def test_product_is_that_of_nn_linear(dtype: torch.dtype, num_rows: int, has_bias: bool) -> None:
    linear = nn.Linear(96, 72, bias=has_bias, dtype=dtype).requires_grad_(False)
    packed = (OneDnnLinear if dtype is torch.bfloat16 else TransposedLinear)(linear)
    x = random(2, num_rows, 96, dtype=dtype)

    result = packed(x)

    assert (result.shape, result.dtype) == ((2, num_rows, 72), dtype)
    # the same sums in another order, rounded once
    torch.testing.assert_close(result, linear(x), rtol=2 * torch.finfo(dtype).eps, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "deepseek_v3", "falcon_h1", "gpt2", "mamba2"])
def test_model_keeps_its_logits(name: str, dtype: torch.dtype) -> None:
    model = build(name, dtype=dtype).requires_grad_(False)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = model(ids).logits

        num_packed = prepack_linears(model)

        logits = model(ids).logits
    assert num_packed == sum(isinstance(module, PREPACKED) for module in model.modules())
    # each of a few dozen products rounds once, to other last digits
    assert (logits - expected).square().mean().sqrt() <= 16 * torch.finfo(dtype).eps * expected.std()


def test_every_linear_of_a_llama_is_replaced_but_a_tied_head() -> None:
    model = build("llama")
    model.lm_head.weight = model.get_input_embeddings().weight

    prepack_linears(model.requires_grad_(False))

    plain = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert plain == ["lm_head"]


def test_a_weight_that_is_read_by_other_code_stays() -> None:
    model = build("llama").requires_grad_(False)
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) + 0 * mlp.up_proj.weight.sum()

    prepack_linears(model)

    assert type(mlp.up_proj) is nn.Linear
    assert isinstance(mlp.gate_proj, PREPACKED)
