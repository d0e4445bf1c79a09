"""What the calibrated methods remember and promise: never worse than plain rounding on what they have seen."""

import pytest
import torch
from torch import Tensor

from workers.compress import gptq
from workers.compress.calibrated_table import calibrated_method
from workers.compress.gptq_method import GptqInputs
from workers.compress.method import CalibratedMethod, Observer, Rounded
from workers.compress.token_sample import TokenSample
from workers.compress.weight_grid import WeightGrid
from workers.formats.codes import GridCodes
from workers.protocol.recipes import AwqRecipe, GptqRecipe, Recipe, RtnRecipe, SmoothQuantRecipe

FP16 = torch.float16
K = 96


def inputs_like_a_models(num_tokens: int, seed: int) -> Tensor:
    """Channels of very different sizes, mixed with each other."""
    mixing = torch.randn(K, K, generator=torch.Generator().manual_seed(1)) / K**0.5
    sizes = torch.exp(torch.randn(K, generator=torch.Generator().manual_seed(2)))
    chance = torch.Generator().manual_seed(seed)
    return (torch.randn(num_tokens, K, generator=chance) * sizes) @ (mixing + torch.eye(K)) * sizes


def weight_of(num_rows: int, seed: int) -> Tensor:
    return torch.randn(num_rows, K, generator=torch.Generator().manual_seed(seed))


def observed_by(method: CalibratedMethod, inputs: Tensor) -> Observer:
    observer = method.observer(K)
    for part in inputs.split(50):
        observer.add(part)
    return observer


def method_of_table(recipe: Recipe) -> CalibratedMethod:
    method = calibrated_method(recipe, FP16)
    assert method is not None
    return method


def rounded_by(method: CalibratedMethod, weights: list[Tensor], inputs: Tensor) -> list[Rounded]:
    """As the layer job does it."""
    observer = observed_by(method, inputs)
    scales = method.scales(weights, observer)
    return [method.round(weight if scales is None else weight * scales, observer, scales) for weight in weights]


def relative(weight: Tensor, approximation: Tensor, inputs: Tensor) -> float:
    exact = inputs.double() @ weight.double().T
    return float((inputs.double() @ approximation.double().T - exact).norm() / exact.norm())


RECIPES: dict[str, Recipe] = {
    "gptq-3": GptqRecipe(num_bits=3, group_size=32),
    "gptq-4-in-order": GptqRecipe(num_bits=4, group_size=-1, act_order=False),
    "awq-3": AwqRecipe(num_bits=3, group_size=32),
    "awq-4-tensor": AwqRecipe(num_bits=4, group_size=0),
    "awq-4-no-clip": AwqRecipe(num_bits=4, group_size=-1, clip=False),
    "smoothquant": SmoothQuantRecipe(),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@pytest.mark.parametrize("num_tokens", [40, 600])
def test_no_method_is_worse_than_rounding_to_nearest_on_what_it_saw(recipe: Recipe, num_tokens: int) -> None:
    weights = [weight_of(24, 3), weight_of(40, 4)]

    found = rounded_by(method_of_table(recipe), weights, inputs_like_a_models(num_tokens, 5))

    # Scales are chosen for the group, by the sum of squares.
    sizes = [float((inputs_like_a_models(num_tokens, 5) @ weight.T).square().sum()) for weight in weights]
    before, after = (
        sum(size * getattr(one, name) ** 2 for one, size in zip(found, sizes, strict=True))
        for name in ("error_before", "error_after")
    )
    assert after <= before * (1 + 1e-6)
    if not isinstance(recipe, SmoothQuantRecipe):
        assert after < 0.95 * before


@pytest.mark.parametrize("recipe", [GptqRecipe(group_size=32), AwqRecipe(group_size=32)], ids=["gptq", "awq"])
def test_reported_errors_are_those_of_the_outputs(recipe: Recipe) -> None:
    method, weight, inputs = method_of_table(recipe), weight_of(24, 3), inputs_like_a_models(600, 5)
    observer = observed_by(method, inputs)
    scales = method.scales([weight], observer)

    found = method.round(weight if scales is None else weight * scales, observer, scales)

    values = found.codes.dequantize() if scales is None else found.codes.dequantize() / scales
    assert found.error_after == pytest.approx(relative(weight, values, inputs), rel=1e-3)
    assert isinstance(found.codes, GridCodes)
    assert found.codes.scale.dtype is FP16


def test_smoothquant_codes_are_w8a8_and_its_errors_those_of_int8_activations() -> None:
    method, weight, inputs = method_of_table(SmoothQuantRecipe()), weight_of(24, 3), inputs_like_a_models(600, 5)
    inputs[:, 7] *= 100
    observer = observed_by(method, inputs)

    scales = method.scales([weight], observer)
    assert scales is not None
    found = method.round(weight * scales, observer, scales)

    assert isinstance(found.codes, GridCodes)
    assert (found.codes.format, found.codes.activation_bits) == ("w8a8", 8)
    smooth = inputs / scales
    step = smooth.abs().amax(1, keepdim=True) / 127
    outputs = (torch.round(smooth / step) * step).double() @ found.codes.dequantize().double().T
    exact = inputs.double() @ weight.double().T
    assert found.error_after == pytest.approx(float((outputs - exact).norm() / exact.norm()), rel=1e-3)
    assert found.error_after < 0.5 * found.error_before


def test_scales_that_help_nothing_are_not_folded() -> None:
    even = torch.randn(300, K, generator=torch.Generator().manual_seed(5))
    weight = torch.ones(8, K) + 0.01 * weight_of(8, 3)

    assert (
        method_of_table(SmoothQuantRecipe(alpha=1.0)).scales(
            [weight], observed_by(method_of_table(SmoothQuantRecipe()), even)
        )
        is None
    )
    assert method_of_table(GptqRecipe()).scales([weight], observed_by(method_of_table(GptqRecipe()), even)) is None


def errors_on_unseen_text(inputs: Tensor, unseen: Tensor) -> tuple[float, float]:
    """Of the method, and of GPTQ with its damping of 0.01 whatever the inputs; as multiples of plain rounding's."""
    weight, method = weight_of(24, 3), method_of_table(GptqRecipe(group_size=-1))
    chosen = rounded_by(method, [weight], inputs)[0].codes.dequantize()
    hessian = gptq.HessianAccumulator(K)
    hessian.add(inputs)
    points = WeightGrid(num_bits=4, group_size=-1, is_symmetric=True, is_searched=True)
    fixed = gptq.quantize(weight, hessian.mean, points, act_order=True, damp_percent=0.01)
    plain = relative(weight, fixed.plain.dequantize(), unseen)
    return relative(weight, chosen, unseen) / plain, relative(weight, fixed.codes.dequantize(), unseen) / plain


@pytest.mark.parametrize("num_tokens", [K, 3 * K // 2])
def test_damping_is_raised_where_few_tokens_would_mislead_gptq(num_tokens: int) -> None:
    chance = torch.Generator().manual_seed(5)
    even = torch.randn(num_tokens + 2000, K, generator=chance)

    ours, fixed = errors_on_unseen_text(even[:num_tokens], even[num_tokens:])

    assert fixed > 1.1
    assert ours < 1.02


@pytest.mark.parametrize("num_tokens", [K, 3 * K // 2])
def test_damping_is_not_raised_where_few_directions_matter(num_tokens: int) -> None:
    ours, fixed = errors_on_unseen_text(inputs_like_a_models(num_tokens, 5), inputs_like_a_models(2000, 77))

    assert fixed < 0.5
    assert ours < 1.1 * fixed


def test_held_out_tokens_are_part_of_the_final_hessian() -> None:
    inputs = inputs_like_a_models(200, 5)
    method = method_of_table(GptqRecipe(group_size=-1))
    observer = observed_by(method, inputs)
    assert isinstance(observer, GptqInputs)
    num_held = len(observer.held)

    method.round(weight_of(24, 3), observer, None)

    assert (num_held, len(observer.held), observer.num_tokens) == (25, 0, 200)
    expected = 2 * inputs.double().T @ inputs.double() / len(inputs)
    torch.testing.assert_close(observer.hessian.mean.double(), expected, rtol=1e-4, atol=1e-3)


def test_recipe_without_data_has_no_method() -> None:
    assert calibrated_method(RtnRecipe(), FP16) is None


@pytest.mark.parametrize("part", [1, 7, 64])
def test_token_sample_is_evenly_spaced_whatever_the_samples_are(part: int) -> None:
    inputs = torch.arange(500.0)[:, None] - 250 + torch.zeros(500, 3)

    sample = TokenSample(3, max_tokens=64)
    for some in inputs.split(part):
        sample.add(some)

    assert torch.equal(sample.tokens, inputs[::8])
    assert sample.num_tokens == 500
    torch.testing.assert_close(sample.mean, inputs.abs().mean(0))
    assert torch.equal(sample.absmax, inputs.abs().amax(0))


def test_sample_without_tokens_is_all_zero() -> None:
    sample = TokenSample(3)
    sample.add(torch.zeros(0, 3))

    assert (sample.num_tokens, len(sample.tokens)) == (0, 0)
    assert sample.mean.tolist() == sample.absmax.tolist() == [0, 0, 0]
    assert sample.relative_error(torch.ones(2, 3), torch.zeros(2, 3)) == 0
