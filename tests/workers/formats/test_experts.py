"""Split experts compute what the fused module of their architecture computes, expert by expert, token by token."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Experts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from tests.workers.engine.architectures import VOCAB_SIZE, build
from tests.workers.engine.driving import Driver
from workers.engine.lane import build_runner
from workers.formats.build import build_linear
from workers.formats.codes import GridCodes
from workers.formats.experts import SplitExperts, fill_experts, split_experts
from workers.formats.linear import QuantizedLinear
from workers.protocol.errors import WorkerError, WorkerErrorCode

NUM_EXPERTS, HIDDEN, WIDTH, TOP_K = 5, 16, 12, 2
# Sums of some tens of products of order one, in another order: a few units in the last place of 2**-23.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

GATINGS = {
    "mixtral": MixtralExperts,
    "clamped": DeepseekV4Experts,
    "without-gate": NemotronHExperts,
    "normed": MuseSparkExperts,
}


class Config(SimpleNamespace):
    """As much of a config as any experts module reads."""

    def __init__(self) -> None:
        super().__init__(
            num_local_experts=NUM_EXPERTS, n_routed_experts=NUM_EXPERTS, hidden_size=HIDDEN, moe_hidden_size=HIDDEN,
            intermediate_size=WIDTH, moe_intermediate_size=WIDTH, moe_latent_size=None, hidden_act="silu",
            mlp_hidden_act="relu2", swiglu_limit=0.5, post_norm_eps=1e-5, _experts_implementation="eager",
        )  # fmt: skip


def fused(kind: type[nn.Module] = MixtralExperts) -> Any:
    """An experts module with weights of order one."""
    made: Any = kind(Config())
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return made.eval().requires_grad_(False)


def routed(num_tokens: int, num_experts: int = NUM_EXPERTS) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, and for each token the indices and weights of its experts, the first `num_experts` only."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(num_tokens, num_experts, generator=generator).topk(TOP_K).indices
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    return hidden, chosen, torch.rand(num_tokens, TOP_K, generator=generator)


@pytest.mark.parametrize("kind", GATINGS.values(), ids=GATINGS.keys())
def test_split_equals_the_fused_module(kind: type[nn.Module]) -> None:
    module = fused(kind)
    arguments = routed(17)
    expected = module(*arguments)

    result = SplitExperts(module)(*arguments)

    torch.testing.assert_close(result, expected, **CLOSE)


def test_each_token_is_the_weighted_sum_of_its_experts_alone() -> None:
    split = SplitExperts(fused())
    hidden, chosen, weights = routed(9)

    result = split(hidden, chosen, weights)

    for token in range(9):
        expected = torch.zeros(HIDDEN, dtype=torch.float64)
        for expert, weight in zip(chosen[token].tolist(), weights[token].double(), strict=True):
            linears = [split.get_submodule(f"{expert}.{part}_proj").weight.double() for part in ("gate", "up", "down")]
            gate, up = (linear @ hidden[token].double() for linear in linears[:2])
            expected += weight * (linears[2] @ (nn.functional.silu(gate) * up))
        torch.testing.assert_close(result[token].double(), expected, **CLOSE)


def test_result_of_a_token_does_not_depend_on_the_rest_of_the_batch() -> None:
    module = fused(NemotronHExperts)
    for parameter in module.parameters():
        # whole numbers: products and their sums are exact in any order, so only the sum over experts rounds
        parameter.copy_((parameter * 8).round())
    split = SplitExperts(module)
    hidden, chosen, weights = routed(40)
    hidden = (hidden * 4).round()

    together = split(hidden, chosen, weights)

    for token in range(40):
        alone = split(hidden[token : token + 1], chosen[token : token + 1], weights[token : token + 1])
        assert torch.equal(alone[0], together[token])


def test_expert_runs_on_its_own_tokens_only_and_not_at_all_without_any() -> None:
    split = SplitExperts(fused())
    hidden, chosen, weights = routed(6, num_experts=3)
    rows: dict[int, int] = {}
    for number in range(NUM_EXPERTS):
        split.get_submodule(f"{number}.down_proj").register_forward_hook(
            lambda _, args, __, number=number: rows.update({number: len(args[0])})
        )

    split(hidden, chosen, weights)

    assert rows == {number: int((chosen == number).sum()) for number in range(3)}


def test_no_tokens_give_no_rows() -> None:
    result = SplitExperts(fused())(*routed(0))

    assert result.shape == (0, HIDDEN)


def test_indices_beyond_the_last_expert_count_for_nothing() -> None:
    split = SplitExperts(fused())
    hidden, chosen, weights = routed(4)
    chosen[:, 1] = NUM_EXPERTS

    result = split(hidden, chosen, weights)

    torch.testing.assert_close(result, split(hidden, chosen[:, :1], weights[:, :1]), **CLOSE)


def test_bf16_experts_round_their_sum_once() -> None:
    module = fused().bfloat16()
    split = SplitExperts(module)
    hidden, chosen, weights = routed(30)
    hidden = hidden.bfloat16()

    result = split(hidden, chosen, weights)

    parts = [split(hidden, chosen[:, [k]], torch.ones(30, 1)).float() * weights[:, [k]] for k in range(TOP_K)]
    assert result.dtype is torch.bfloat16
    # The parts above are rounded once themselves, to a relative 2**-9 each, the result once more.
    bound = 2**-9 * (sum(part.abs() for part in parts) + result.float().abs())
    assert bool(((result.float() - sum(parts)).abs() <= bound).all())


def test_copies_and_dtype_changes_reach_the_gating() -> None:
    split = SplitExperts(fused(MuseSparkExperts))
    arguments = routed(5)

    copied = copy.deepcopy(split).double()

    assert copied.post_expert_norm.weight.dtype is torch.float64
    hidden, chosen, weights = arguments
    torch.testing.assert_close(copied(hidden.double(), chosen, weights.double()).float(), split(*arguments), **CLOSE)


def test_a_quantized_linear_takes_the_place_of_an_experts_linear() -> None:
    split = SplitExperts(fused())
    linear = split.get_submodule("3.up_proj")
    codes = GridCodes(
        num_bits=8,
        codes=(linear.weight * 32).round().clamp(-127, 127).to(torch.int16).add(128).to(torch.uint8),
        scale=torch.full((WIDTH, 1), 1 / 32),
        zero=torch.full((WIDTH, 1), 128, dtype=torch.uint8),
    )
    quantized = build_linear(codes, None, dtype=torch.float32, device=torch.device("cpu"))
    arguments = routed(8)
    before = split(*arguments)

    split.set_submodule("3.up_proj", quantized)

    after = split(*arguments)
    changed = (arguments[1] == 3).any(dim=1)
    assert isinstance(split.get_submodule("3.up_proj"), QuantizedLinear)
    assert torch.equal(after[~changed], before[~changed])
    assert not torch.equal(after[changed], before[changed])


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next"])
def test_split_model_gives_the_fused_models_logits(name: str) -> None:
    model = build(name)
    ids = torch.randint(0, VOCAB_SIZE, (2, 19), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(ids).logits

    reasons = split_experts(model)

    with torch.inference_mode():
        logits = model(ids).logits
    assert reasons == {}
    assert any(isinstance(module, SplitExperts) for module in model.modules())
    assert not any(parameter.dim() == 3 and "expert" in name for name, parameter in model.named_parameters())
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_skeleton_stays_without_memory() -> None:
    with torch.device("meta"):
        model = build("qwen3_moe", device="meta")
    num_parameters = model.num_parameters()

    split_experts(model, ["model.layers.1.mlp.experts"])

    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".experts." in name}
    assert linears == {
        f"model.layers.1.mlp.experts.{expert}.{part}_proj" for expert in range(4) for part in ("gate", "up", "down")
    }
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.num_parameters() == num_parameters


def test_interleaved_experts_stay_fused_with_a_reason() -> None:
    model = build("gpt_oss")

    reasons = split_experts(model)

    assert reasons.keys() == {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts"}
    assert all("GptOssExperts" in reason for reason in reasons.values())
    assert not any(isinstance(module, SplitExperts) for module in model.modules())


def test_weight_of_another_shape_is_refused_by_name() -> None:
    split = SplitExperts(fused())

    with pytest.raises(WorkerError, match=r"a\.w1\.weight") as raised:
        fill_experts(
            split,
            {"a.w1.weight": "0.gate_proj"},
            lambda _: torch.zeros(WIDTH, HIDDEN + 1),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )

    assert raised.value.code is WorkerErrorCode.VARIANT_CORRUPT


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_packed_lane_serves_split_experts_with_the_tokens_of_generate(name: str) -> None:
    model = build(name)
    prompts = [[5, 9, 77], [3] * 20, [8, 1, 4, 90, 61, 2, 33]]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        expected.append(output[0, len(prompt) :].tolist())
    split_experts(model)

    choice = build_runner(model, lane="auto", max_model_len=64, max_num_seqs=4, kv_cache_bytes=2**22, verdict_dir=None)

    assert choice.lane == "packed"
    assert Driver(choice.runner).generate(prompts, 6) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", GATINGS.values(), ids=GATINGS.keys())
def test_split_on_cuda_equals_the_cpu(kind: type[nn.Module]) -> None:
    split = SplitExperts(fused(kind))
    arguments = routed(33)
    expected = split(*arguments)

    result = split.cuda()(*(argument.cuda() for argument in arguments))

    torch.testing.assert_close(result.cpu(), expected, **CLOSE)
