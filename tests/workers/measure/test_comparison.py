"""Perplexity, truncated KL and their intervals, against direct definitions in fp64."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.tiny import VOCAB_SIZE, save_tiny_model
from workers.checkpoint.load import load_model
from workers.measure.comparison import measure_variant
from workers.measure.intervals import BLOCK_TOKENS, mean_interval
from workers.measure.quality import kl_divergence
from workers.measure.reference import load_reference, lumped_kl, summarize
from workers.measure.windows import sliding_windows
from workers.protocol.messages import MeasureResult
from workers.protocol.specs import MeasureSpec

NUM_TOKENS = 150


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, another model in place of a variant, and a text of NUM_TOKENS tokens."""
    root = tmp_path_factory.mktemp("measured")
    ids = torch.randint(3, VOCAB_SIZE, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    save_file({"token_ids": ids}, root / "text.safetensors")
    base = save_tiny_model(root / "base", initializer_range=0.3)
    return base, save_tiny_model(root / "other", seed=1, initializer_range=0.3), root / "text.safetensors"


def measure(folders: tuple[Path, Path, Path], cache: Path, **changes: object) -> MeasureResult:
    base, variant, text = folders
    fields: dict[str, object] = {
        "variant_dir": str(variant),
        "token_ids_path": str(text),
        "window": 64,
        "stride": 32,
        "base_path": str(base),
        "base_fingerprint": "base",
        "cache_dir": str(cache),
        "device": "cpu",
        **changes,
    }
    return measure_variant(MeasureSpec(**fields), lambda progress: None, lambda: None)  # type: ignore[arg-type]


def random_log_probs(seed: int, rows: int = 200, spread: float = 3.0) -> torch.Tensor:
    return (spread * torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def test_windows_are_those_of_the_definition() -> None:
    found = [(one.begin, one.first, one.end) for one in sliding_windows(10, 6, 3)]

    assert found == [(0, 1, 6), (3, 6, 9), (6, 9, 10)]
    assert [(one.first, one.end) for one in sliding_windows(10, 5, 5)] == [(1, 5), (6, 10)]
    assert [one.end for one in sliding_windows(11, 5, 5)] == [5, 10]


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (64, 64), (128, 1)], ids=["half", "disjoint", "one"])
def test_perplexity_equals_labels_in_transformers(
    folders: tuple[Path, Path, Path], tmp_path: Path, window: int, stride: int
) -> None:
    """The loop of the Hugging Face page: labels of -100 for what an earlier window has scored."""
    model = load_model(folders[1], dtype="fp32", device=torch.device("cpu"), on_progress=lambda a, b: None).model
    ids = load_file(folders[2])["token_ids"].long()
    total, count, before = 0.0, 0, 0
    for begin in range(0, NUM_TOKENS, stride):
        end = min(begin + window, NUM_TOKENS)
        labels = ids[:, begin:end].clone()
        labels[:, : before - begin] = -100
        scored = int((labels[:, 1:] != -100).sum())
        if scored:
            total += float(model(input_ids=ids[:, begin:end], labels=labels).loss) * scored
            count += scored
        before = end
        if end == NUM_TOKENS:
            break

    found = measure(folders, tmp_path, window=window, stride=stride, base_path=None)

    assert found.num_tokens == count
    # both sum fp32 losses of about 5 nats; transformers rounds each window's mean to fp32
    assert found.nll == pytest.approx(total / count, rel=1e-5)
    assert found.perplexity == math.exp(found.nll)
    assert found.kl_mean is None


def test_truncated_kl_is_a_lower_bound_and_grows_with_k() -> None:
    base, variant = random_log_probs(0), random_log_probs(1)
    targets = torch.zeros(200, dtype=torch.int64)
    exact = kl_divergence(base, variant), kl_divergence(variant, base)
    before = torch.zeros(200, dtype=torch.float64), torch.zeros(200, dtype=torch.float64)

    for top_k in (1, 4, 16, 48):
        found = lumped_kl(summarize(base, targets, top_k), variant)

        for bound, smaller, full in zip(found, before, exact, strict=True):
            # fp32 log-probabilities of up to 20 nats carry 1e-6
            assert (bound <= full + 1e-5).all()
            assert (bound >= smaller - 1e-5).all()
        before = found

    assert exact[0].mean() > before[0].mean() > 0.5 * exact[0].mean()


def test_kl_over_all_tokens_is_exact() -> None:
    base, variant = random_log_probs(0), random_log_probs(1)

    forward, backward = lumped_kl(summarize(base, torch.zeros(200, dtype=torch.int64), 1000), variant)

    torch.testing.assert_close(forward, kl_divergence(base, variant), rtol=0, atol=1e-5)
    torch.testing.assert_close(backward, kl_divergence(variant, base), rtol=0, atol=1e-5)


def test_second_measurement_reads_the_base_from_the_cache(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first = measure(folders, tmp_path, top_k=16)
    again = measure(folders, tmp_path, top_k=16, base_path="/nowhere")
    exact = measure(folders, tmp_path, top_k=1000)

    assert (first.reference_cached, again.reference_cached) == (False, True)
    assert first.kl_mean == again.kl_mean
    # 16 ids and log-probabilities, the tail, the first choice and the token's own: 8 * 16 + 12 bytes, and a header
    assert first.reference_bytes is not None
    assert 0 < first.reference_bytes - (NUM_TOKENS - 1) * (8 * 16 + 12) < 1000
    assert first.kl_mean is not None
    assert exact.kl_mean is not None
    assert (first.is_exact, exact.is_exact) == (False, True)
    assert 0 < first.kl_mean < exact.kl_mean


def test_base_is_no_distance_from_itself(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    found = measure((folders[0], folders[0], folders[2]), tmp_path, top_k=16)

    assert found.kl_mean is not None
    assert abs(found.kl_mean) < 1e-6
    assert found.top1_agreement == 1.0
    assert found.base_perplexity == pytest.approx(found.perplexity, rel=1e-6)


def test_first_choice_is_the_same_token_where_logits_are_equal() -> None:
    """bf16 has few values, so many of 64 logits near each other are equal."""
    tied = random_log_probs(0, rows=2000, spread=0.1).to(torch.bfloat16).to(torch.float32)

    reference = summarize(tied, torch.zeros(2000, dtype=torch.int64), 16)

    assert (reference.first == tied.argmax(dim=1)).all()
    assert (reference.first != reference.top_ids[:, 0]).any()


def test_torn_cache_file_is_no_reference(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")

    assert load_reference(tmp_path / "torn.safetensors") is None


def test_interval_of_independent_values_is_that_of_the_normal_distribution() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    found = mean_interval(values)

    assert found is not None
    half = 1.96 / math.sqrt(20_000)
    # 1,000 resamples of 313 blocks: the ends scatter by some 7 %
    assert (found[1] - found[0]) / 2 == pytest.approx(half, rel=0.2)
    assert found[0] < float(values.mean()) < found[1]


def test_interval_widens_where_neighbours_agree_and_needs_two_blocks() -> None:
    single = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    repeated = single[:125].repeat_interleave(32)
    narrow, wide = mean_interval(single), mean_interval(repeated)

    assert narrow is not None
    assert wide is not None
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    assert mean_interval(single[: 2 * BLOCK_TOKENS - 1]) is None
