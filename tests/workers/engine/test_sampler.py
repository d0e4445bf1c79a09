"""The sampler against independent arithmetic in fp64, and its independence of the batch."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from workers.engine.logprobs import token_logprobs
from workers.engine.sampler import Pick, sample, uniform
from workers.engine.sequence import Sequence
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.specs import SamplingParams

EOS = frozenset({2})


def sequence_of(*, prompt: list[int] | None = None, output: list[int] | None = None, **params: object) -> Sequence:
    values = {"max_tokens": 100, "temperature": 1.0, **params}
    sequence = Sequence(request_id="r", prompt_ids=prompt or [0], params=SamplingParams(**values))
    sequence.output_ids = output or []
    return sequence


def pick(logits: list[float], **params: object) -> Pick:
    return sample(torch.tensor([logits]), [sequence_of(**params)], EOS)[0]


def support(logits: list[float], **params: object) -> set[int | None]:
    """Every token that 400 seeds give."""
    sequences = [sequence_of(**params, seed=seed) for seed in range(400)]
    return {p.token_id for p in sample(torch.tensor([logits] * 400), sequences, EOS)}


def log_of(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_uniform_is_uniform_over_seeds_and_over_positions() -> None:
    for values in ([uniform(seed, 0) for seed in range(20_000)], [uniform(7, p) for p in range(20_000)]):
        counts = Counter(int(value * 20) for value in values)
        # 1,000 expected per bin; 5 standard deviations of the binomial are 154.
        assert all(abs(counts[bin_] - 1000) < 154 for bin_ in range(20))
        assert all(0 <= value < 1 for value in values)


def test_neighbouring_seeds_and_positions_are_uncorrelated() -> None:
    n = 20_000
    here = torch.tensor([uniform(seed, 3) for seed in range(n)])
    next_seed = torch.tensor([uniform(seed + 1, 3) for seed in range(n)])
    next_position = torch.tensor([uniform(seed, 4) for seed in range(n)])

    for other in (next_seed, next_position):
        # The standard deviation of a correlation of n independent pairs is 1 / sqrt(n).
        assert abs(torch.corrcoef(torch.stack([here, other]))[0, 1].item()) < 5 / math.sqrt(n)


def test_a_negative_seed_is_a_seed() -> None:
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)
    assert uniform(-1, 0) != uniform(1, 0)


def test_samples_follow_the_distribution() -> None:
    probabilities = [0.5, 0.25, 0.125, 0.125]
    n = 8000
    sequences = [sequence_of(seed=seed) for seed in range(n)]

    picks = sample(torch.tensor([log_of(*probabilities)] * n), sequences, EOS)

    counts = Counter(p.token_id for p in picks)
    for token_id, probability in enumerate(probabilities):
        assert abs(counts[token_id] - n * probability) < 5 * math.sqrt(n * probability * (1 - probability))


def random_params(seed: int) -> dict[str, object]:
    """A different mixture of everything for each row."""
    return {
        "temperature": [0.0, 0.3, 1.0, 2.0][seed % 4],
        "top_k": [0, 1, 50, 3000][seed // 2 % 4],
        "top_p": [1.0, 0.9, 0.9999][seed % 3],
        "min_p": [0.0, 0.05][seed // 3 % 2],
        "repetition_penalty": [1.0, 1.3][seed // 5 % 2],
        "presence_penalty": [0.0, 0.5][seed // 7 % 2],
        "frequency_penalty": [0.0, -0.5][seed // 4 % 2],
        "logit_bias": [{}, {5: 3.0, 6: -100.0}][seed // 6 % 2],
        "logprobs": [None, 0, 5][seed % 3],
        "seed": seed,
        "output": list(range(seed)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype, num_threads: int) -> None:
    # Large enough for torch to split one row over threads where an op does that.
    logits = (torch.randn(24, 70_000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    sequences = [sequence_of(**random_params(seed)) for seed in range(24)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = sample(logits, sequences, EOS)
        alone = [sample(logits[row : row + 1], [sequences[row]], EOS)[0] for row in range(24)]
    finally:
        torch.set_num_threads(before)

    assert together == alone


def test_the_logits_are_left_unchanged() -> None:
    logits = torch.randn(4, 100)
    copy = logits.clone()

    sample(logits, [sequence_of(**random_params(seed)) for seed in (1, 5, 6, 7)], EOS)

    assert torch.equal(logits, copy)


def nucleus(logits: Tensor, top_k: int, top_p: float, min_p: float, temperature: float) -> list[float]:
    """The filtered distribution in plain Python, fp64, straight from the definitions."""
    scaled = [x / temperature for x in logits.double().tolist()]
    order = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    kept = order[: top_k or len(order)]
    weights = {i: math.exp(scaled[i] - scaled[order[0]]) for i in kept}
    total, mass, chosen = sum(weights.values()), 0.0, []
    for i in kept:
        chosen.append(i)
        mass += weights[i] / total
        if mass >= top_p:
            break
    chosen = [i for i in chosen if weights[i] >= min_p * weights[order[0]]]
    total = sum(weights[i] for i in chosen)
    return [weights[i] / total if i in set(chosen) else 0.0 for i in range(len(scaled))]


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "temperature"),
    [
        (0, 1.0, 0.0, 1.0),
        (20, 1.0, 0.0, 0.7),
        (0, 0.8, 0.0, 1.3),
        (50, 0.6, 0.0, 1.0),
        (0, 1.0, 0.1, 1.0),
        (30, 0.9, 0.05, 2.0),
    ],
)
def test_picks_are_the_quantiles_of_the_filtered_distribution(
    top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3)) * 2
    expected = nucleus(logits, top_k, top_p, min_p, temperature)
    params = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}

    for seed in range(200):
        u = uniform(seed, 0)
        token_id = sample(logits.unsqueeze(0), [sequence_of(**params, seed=seed)], EOS)[0].token_id
        assert token_id is not None
        below, above = sum(expected[:token_id]), sum(expected[: token_id + 1])
        # 1e-5: the sampler's softmax is fp32.
        assert below - 1e-5 <= u <= above + 1e-5
        assert expected[token_id] > 0


def test_a_nucleus_larger_than_the_candidates_is_still_exact() -> None:
    logits = torch.zeros(1, 5000)
    sequences = [sequence_of(top_p=0.5, seed=seed) for seed in range(300)]

    token_ids = [p.token_id for p in sample(logits.expand(300, -1).clone(), sequences, EOS)]

    # Ties are kept by id: half of the mass is the first half of the vocabulary.
    assert max(token_ids) in range(2300, 2501)


def test_top_k_keeps_exactly_k_among_ties() -> None:
    assert support([1.0, 3.0, 3.0, 3.0, 0.0], top_k=2) == {1, 2}


def test_top_k_1_is_greedy() -> None:
    assert support([1.0, 3.0, 3.0, 0.0], top_k=1) == {1}


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = log_of(0.1, 0.5, 0.3, 0.1)

    assert support(logits, top_p=0.4) == {1}
    assert support(logits, top_p=0.7) == {1, 2}
    assert support(logits, top_p=0.85) == {0, 1, 2}


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = log_of(0.1, 0.5, 0.26, 0.14)

    assert support(logits, min_p=0.5) == {1, 2}
    assert support(logits, min_p=0.25) == {1, 2, 3}


def test_greedy_takes_the_first_of_equals() -> None:
    assert pick([0.0, 2.0, 2.0], temperature=0.0).token_id == 1


@pytest.mark.parametrize("temperature", [1e-45, 1e-6, 1e-5, 1e-3])
def test_a_tiny_temperature_does_not_overflow(temperature: float) -> None:
    assert support([10.0, 90.0, 89.0], temperature=temperature) == {1}


def test_a_repetition_penalty_sees_prompt_and_output() -> None:
    params = {"temperature": 0.0, "repetition_penalty": 2.0}

    assert pick([4.0, 3.9, 0.0], prompt=[0], **params).token_id == 1
    assert pick([4.0, 3.9, 0.0], prompt=[1], output=[0], **params).token_id == 0
    assert pick([-1.0, -1.5, -9.0], prompt=[0], **params).token_id == 1


def test_presence_and_frequency_penalties_see_only_the_output() -> None:
    logits = [4.0, 3.5, 0.0]

    assert pick(logits, temperature=0.0, presence_penalty=1.0, prompt=[0]).token_id == 0
    assert pick(logits, temperature=0.0, presence_penalty=1.0, output=[0]).token_id == 1
    assert pick(logits, temperature=0.0, frequency_penalty=0.3, output=[0]).token_id == 0
    assert pick(logits, temperature=0.0, frequency_penalty=0.3, output=[0, 0]).token_id == 1


def test_a_bias_is_added_and_minus_100_bans() -> None:
    assert pick([1.0, 0.0], temperature=0.0, logit_bias={1: 2.0}).token_id == 1
    assert pick([500.0, 0.0], temperature=0.0, logit_bias={0: -99.0}).token_id == 0
    assert pick([500.0, 0.0], temperature=0.0, logit_bias={0: -100.0}).token_id == 1


def test_min_tokens_masks_what_would_end_the_text() -> None:
    logits = [0.0, 1.0, 9.0, 8.0]

    assert pick(logits, temperature=0.0, min_tokens=1, stop_token_ids=(3,)).token_id == 1
    assert pick(logits, temperature=0.0, min_tokens=1, stop_token_ids=(3,), output=[0]).token_id == 2
    assert pick(logits, temperature=0.0, min_tokens=1, ignore_eos=True).token_id == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banning_everything_is_an_error(temperature: float) -> None:
    result = pick([1.0, 2.0], temperature=temperature, logit_bias={0: -100.0, 1: -100.0})

    assert result.error is not None
    assert result.error.code is WorkerErrorCode.NO_VALID_TOKEN


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_nonfinite_row_fails_alone(value: float, temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0], [value, 0.0], [3.0, 2.0]])
    sequences = [sequence_of(temperature=temperature, seed=seed) for seed in range(3)]

    picks = sample(logits, sequences, EOS)

    assert picks[1].error is not None
    assert picks[1].error.code is WorkerErrorCode.NONFINITE_LOGITS
    assert [picks[0], picks[2]] == [sample(logits[row : row + 1], [sequences[row]], EOS)[0] for row in (0, 2)]


def test_a_row_of_minus_infinity_is_nonfinite_but_masked_words_are_fine() -> None:
    assert pick([-math.inf, -math.inf]).error is not None
    assert support([0.0, -math.inf, 0.0]) == {0, 2}


def test_logprobs_are_the_models_own_whatever_shapes_the_sampling() -> None:
    logits = [2.0, 1.0, 0.0, -1.0]
    reference = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=0)

    result = pick(logits, temperature=0.0, logit_bias={0: -100.0}, logprobs=2)

    assert result.logprob is not None
    assert result.logprob.token_id == 1
    # 4 * 2**-24 relative: a few roundings of fp32.
    assert result.logprob.logprob == pytest.approx(reference[1].item(), rel=4 * 2**-24)
    assert [token_id for token_id, _ in result.logprob.top] == [0, 1]
    assert result.logprob.logprob == result.logprob.top[1][1]


def test_alternatives_are_sorted_by_logprob_then_id() -> None:
    entry = token_logprobs(torch.tensor([[1.0, 3.0, 3.0, 1.0, 1.0, 3.0]]), [4], 4)[0]

    assert [token_id for token_id, _ in entry.top] == [1, 2, 5, 0]
    assert entry.logprob == entry.top[3][1]


def test_asking_for_more_alternatives_than_words_gives_all() -> None:
    entry = token_logprobs(torch.tensor([[0.0, -math.inf, 1.0]]), [0], 20)[0]

    assert [token_id for token_id, _ in entry.top] == [2, 0, 1]
    assert entry.top[2][1] == -math.inf
