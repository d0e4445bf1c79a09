"""A real tiny Llama from disk, through its lane and the whole engine."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.workers.engine.toy_runner import Result, finish, request, run
from workers.engine.engine import Engine
from workers.faults import NO_FAULTS
from workers.opening import default_kv_cache_bytes, eos_token_ids, open_model
from workers.protocol.errors import WorkerErrorCode
from workers.protocol.messages import Generate, ModelInfo
from workers.protocol.specs import ServeSpec

VOCAB_SIZE = 128
# 2 layers x 2 (key and value) x 2 heads x 8 numbers x 4 bytes.
KV_BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 24, "seed": 77}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with an end-of-text id that is far from likely."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=[1, 2],
        # Large weights, so that logits differ and sampling has a shape.
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def opened(folder: Path, **changes: Any) -> tuple[Engine, ModelInfo]:
    values = {"variant": "tiny", "path": str(folder), "device": "cpu", "kv_cache_bytes": 2**20, **changes}
    return open_model(ServeSpec(**values), lambda done, total: None, lambda phase: None, NO_FAULTS)


def prompts(count: int) -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(3, VOCAB_SIZE) for _ in range(source.randint(2, 60))] for _ in range(count)]


@pytest.fixture(scope="module")
def tiny(folder: Path) -> tuple[Engine, ModelInfo]:
    return opened(folder)


def test_the_info_says_what_was_loaded(folder: Path) -> None:
    phases: list[str] = []
    progress: list[tuple[int, int]] = []
    spec = ServeSpec(variant="tiny", path=str(folder), device="cpu", kv_cache_bytes=2**20)

    _, info = open_model(spec, lambda done, total: progress.append((done, total)), phases.append, NO_FAULTS)

    assert (info.architecture, info.device, info.dtype, info.format) == ("LlamaForCausalLM", "cpu", "fp32", "fp32")
    assert (info.lane, info.vocab_size, info.max_model_len, info.eos_token_ids) == ("packed", VOCAB_SIZE, 256, [1, 2])
    # Beside the parameters there are only the rotary frequencies, 4 numbers, and a copy of them.
    assert 0 <= info.weight_bytes - 4 * info.num_parameters <= 2 * 4 * 4
    assert info.kv_cache_bytes == info.kv_cache_tokens * KV_BYTES_PER_TOKEN
    assert info.kv_cache_bytes <= 2**20
    assert phases == ["building", "proving"]
    assert progress[-1][0] == progress[-1][1] > 0


def test_greedy_equals_the_plain_model(folder: Path, tiny: tuple[Engine, ModelInfo]) -> None:
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    prompt = prompts(1)[0]
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)

    result = run(tiny[0], [request("a", prompt, max_tokens=12, ignore_eos=True)])["a"]

    assert result.token_ids == ids[0, len(prompt) :].tolist()


def test_one_seed_gives_one_text_alone_in_a_batch_and_after_preemption(
    folder: Path, tiny: tuple[Engine, ModelInfo]
) -> None:
    requests = [request(f"r{i}", ids, **{**SAMPLED, "seed": i, "ignore_eos": True}) for i, ids in enumerate(prompts(8))]
    # Room for fewer than all of them at once.
    cramped, _ = opened(folder, kv_cache_bytes=320 * KV_BYTES_PER_TOKEN)

    alone = {item.request_id: run(tiny[0], [item])[item.request_id].token_ids for item in requests}
    batched = tokens_of(run(tiny[0], requests))
    for item in requests:
        cramped.add(item)
    preempted, stats = finish(cramped)

    assert batched == alone
    assert tokens_of(preempted) == alone
    assert stats[-1].preemptions_total > 0
    assert stats[-1].kv_usage_ratio == 0


def tokens_of(results: dict[str, Result]) -> dict[str, list[int]]:
    return {key: result.token_ids for key, result in results.items()}


def test_a_cached_prefix_changes_nothing(folder: Path, tiny: tuple[Engine, ModelInfo]) -> None:
    prefix = prompts(3)[2][:40] * 2
    items = [request(name, [*prefix, tail], **SAMPLED) for name, tail in (("first", 5), ("second", 9))]
    fresh, _ = opened(folder)

    run(tiny[0], items[:1])
    cached = run(tiny[0], items[1:])["second"]

    assert cached.num_cached_tokens >= len(prefix) // 16 * 16
    assert cached.token_ids == run(fresh, items[1:])["second"].token_ids


def test_prompt_logprobs_equal_the_plain_models(folder: Path, tiny: tuple[Engine, ModelInfo]) -> None:
    prompt = prompts(4)[3]
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        reference = torch.log_softmax(model(torch.tensor([prompt])).logits[0].double(), dim=-1)

    result = run(tiny[0], [request("a", prompt, max_tokens=1, prompt_logprobs=0, logprobs=3)])["a"]

    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    for place, entry in enumerate(result.prompt_logprobs[1:]):
        assert entry is not None
        # fp32 forward against fp32 forward in another order, logits of about 10: 1e-4 is some hundred roundings.
        assert entry.logprob == pytest.approx(reference[place, prompt[place + 1]].item(), abs=1e-4)
    assert result.logprobs[0].logprob == result.logprobs[0].top[0][1]


def test_a_request_over_the_models_length_is_refused(tiny: tuple[Engine, ModelInfo]) -> None:
    result = run(tiny[0], [Generate(request_id="a", prompt_ids=[3] * 256, params=request("a", [3]).params)])["a"]

    assert result.error is not None
    assert result.error.code is WorkerErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_the_model_stops_where_its_config_says(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)

    assert eos_token_ids(model) == {1, 2}
    assert model.generation_config is not None
    model.generation_config.eos_token_id = 7
    assert eos_token_ids(model) == {7}
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    assert eos_token_ids(model) == frozenset()


def test_the_default_pool_is_a_bounded_share_of_free_memory() -> None:
    assert 0 < default_kv_cache_bytes(torch.device("cpu")) <= 4 * 2**30
