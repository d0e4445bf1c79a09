"""What lm-eval and its kin read: scored prompts, token ids, timings, metrics."""

import httpx
import pytest
from sse_reading import chat, completion, stream

COMPLETIONS = "/v1/completions"


async def ids_of(http: httpx.AsyncClient, text: str) -> list[int]:
    """Token ids with the special ones."""
    answer = await http.post("/tokenize", json={"model": "echo/main", "prompt": text})
    tokens: list[int] = answer.json()["tokens"]
    return tokens


async def test_echoed_prompt_is_scored_token_by_token(http: httpx.AsyncClient) -> None:
    ids = await ids_of(http, "The little dog ran 😀")
    body = completion([ids], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1234)

    choice = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]

    lists = choice["logprobs"]
    assert {name: len(values) for name, values in lists.items()} == dict.fromkeys(lists, len(ids) + 1)
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    for token, logprob, top in list(zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True))[
        1:
    ]:
        assert top[token] == logprob
        assert logprob <= max(top.values())
    # the echo model is certain of its own prompt
    assert lists["token_logprobs"][1:] == [max(top.values()) for top in lists["top_logprobs"][1:]]
    whole = [
        (token, choice["text"][start:])
        for token, start, _ in zip(lists["tokens"], lists["text_offset"], ids, strict=False)
        if not token.startswith("bytes:")
    ]
    assert len(whole) > 5
    assert all(text.startswith(token) for token, text in whole)


async def test_scoring_only_generates_nothing(http: httpx.AsyncClient) -> None:
    ids = await ids_of(http, "The little dog")

    answer = (await http.post(COMPLETIONS, json=completion([ids], max_tokens=0, logprobs=0, echo=True))).json()

    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids)
    assert answer["usage"]["completion_tokens"] == 0


async def test_prompt_logprobs_name_each_token_of_the_prompt(http: httpx.AsyncClient) -> None:
    ids = await ids_of(http, "The little dog")

    choice = (await http.post(COMPLETIONS, json=completion(ids, prompt_logprobs=1))).json()["choices"][0]

    assert choice["prompt_logprobs"][0] is None
    assert all(str(token) in entry for token, entry in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True))


async def test_tokenize_and_detokenize_are_inverse(http: httpx.AsyncClient) -> None:
    body = {"model": "echo/main", "prompt": "The dog 😀", "add_special_tokens": False, "return_token_strs": True}

    answer = (await http.post("/tokenize", json=body)).json()
    back = (await http.post("/detokenize", json={"model": "echo/main", "tokens": answer["tokens"]})).json()

    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 4096
    assert back == {"prompt": "The dog 😀"}


async def test_tokenized_messages_are_what_chat_counts(http: httpx.AsyncClient) -> None:
    body = chat("hello there")

    count = (await http.post("/tokenize", json={"model": body["model"], "messages": body["messages"]})).json()["count"]
    usage = (await http.post("/v1/chat/completions", json=body)).json()["usage"]

    assert count == usage["prompt_tokens"]


async def test_generate_tells_where_the_time_went(http: httpx.AsyncClient) -> None:
    # 0.8 s at least, at 2 ms per token: a server that is set aside for a moment does not get all tokens at once
    body = {"model": "echo/main", "prompt": "The little dog", "max_tokens": 400}

    answer = (await http.post("/v1/generate", json=body)).json()

    timings = answer["timings"]
    assert len(answer["token_ids"]) == 400 == answer["usage"]["completion_tokens"]
    assert timings["queue_ms"] + timings["prefill_ms"] - timings["ttft_ms"] < 0.01
    assert 0 < timings["ttft_ms"] < timings["total_ms"]
    assert timings["total_ms"] >= 399 * 2
    assert 0 < 399 * timings["tpot_ms"] <= timings["total_ms"] - timings["ttft_ms"] + 1
    assert timings["tokens_per_s"] == pytest.approx(1000 / timings["tpot_ms"], rel=0.01)


async def test_metrics_count_what_happened(http: httpx.AsyncClient) -> None:
    await http.post(COMPLETIONS, json=completion())

    text = (await http.get("/metrics")).text

    for name in (
        *("time_to_first_token_seconds_count", "time_per_output_token_seconds_count", "queue_time_seconds_count"),
        *("inter_token_latency_seconds_count", "e2e_request_latency_seconds_count", "prefill_time_seconds_count"),
        *("prompt_tokens_total", "generation_tokens_total", "requests_running", "requests_waiting"),
        *("kv_cache_usage_ratio", "worker_last_step_age_seconds", "model_load_seconds", "worker_restarts_total"),
    ):
        assert f'slimserve_{name}{{variant="echo/main"}}' in text
    assert 'slimserve_memory_bytes{device="cpu",kind="other",variant="echo/main"}' in text
    assert 'slimserve_requests_total{finish_reason="length",status="ok",variant="echo/main"}' in text
    assert "slimserve_variant_info{" in text


async def test_offsets_of_a_generated_stream_go_on(http: httpx.AsyncClient) -> None:
    body = completion(temperature=0, logprobs=0)

    *events, _ = await stream(http, "/v1/generate", body)
    whole = (await http.post("/v1/generate", json=body)).json()

    offsets = [offset for event in events for offset in event["logprobs"]["text_offset"]]
    assert offsets == whole["logprobs"]["text_offset"]
    assert len(set(offsets)) > 1
