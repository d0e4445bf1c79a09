"""KL divergence and friends, against fp64 and against transformers."""

from pathlib import Path

import pytest
import torch

from tests.workers.tiny import save_tiny_model
from workers.checkpoint.load import load_model
from workers.measure.quality import greedy_tokens, kl_divergence, log_probs, top1_agreement, window_logits


def random_log_probs(seed: int, rows: int = 130) -> torch.Tensor:
    return torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_kl_equals_its_formula_in_fp64() -> None:
    p, q = random_log_probs(0), random_log_probs(1)

    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p.double()), torch.distributions.Categorical(logits=q.double())
    )

    # Categorical normalizes once more; rows of fp32 log-probabilities sum to 1 within 50 * 2**-24
    torch.testing.assert_close(kl_divergence(p, q), expected, rtol=0, atol=50 * 2**-24)


def test_kl_of_a_model_with_itself_is_zero_and_is_not_symmetric() -> None:
    p, q = random_log_probs(0), random_log_probs(1)

    assert kl_divergence(p, p).abs().max() == 0
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p))


def test_impossible_tokens_of_the_base_add_nothing() -> None:
    p = torch.tensor([[0.0, -torch.inf]])
    q = torch.tensor([[0.5, 0.5]]).log()

    assert kl_divergence(p, q).item() == pytest.approx(0.6931471805599453, abs=1e-7)


def test_impossible_tokens_of_the_variant_are_infinitely_far() -> None:
    assert kl_divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, -torch.inf]])).item() == torch.inf


def test_top1_agreement_is_a_share() -> None:
    base = torch.eye(4)
    variant = base.clone()
    variant[0] = variant[1]

    assert top1_agreement(base, variant) == 0.75


def test_log_probs_and_greedy_tokens_are_those_of_generate(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = load_model(folder, dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None).model
    ids = list(range(3, 23))

    whole, windows = (log_probs(window_logits(model, torch.tensor(ids).split(size))) for size in (128, 8))
    tokens = greedy_tokens(model, ids, 5)

    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(20))
    torch.testing.assert_close(windows[8:16], log_probs(window_logits(model, [torch.tensor(ids[8:16])])))
    generated = model.generate(
        torch.tensor([ids]), max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert tokens == generated[0, 20:].tolist()


def test_nan_ends_greedy_generation(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = load_model(folder, dtype="fp32", device=torch.device("cpu"), on_progress=lambda done, total: None).model
    model.get_output_embeddings().weight[5] = torch.nan

    assert greedy_tokens(model, [3, 4], 2) is None
