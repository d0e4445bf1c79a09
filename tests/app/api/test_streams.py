"""The rules of streams, chunk by chunk."""

from typing import Any

import httpx
import pytest
from sse_reading import chat, completion, stream

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What one choice of a completion said."""
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


async def test_chat_begins_with_the_role_and_ends_with_an_empty_delta(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, CHAT, chat())

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(list(delta) == ["content"] and delta["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert not any("usage" in chunk for chunk in chunks)


async def test_every_chunk_has_the_same_id_object_time_and_model(http: httpx.AsyncClient) -> None:
    for path, body, kind in ((CHAT, chat(), "chat.completion.chunk"), (COMPLETIONS, completion(), "text_completion")):
        chunks = await stream(http, path, {**body, "stream_options": {"include_usage": True}})

        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {(kind, "echo/main")}


async def test_usage_comes_once_at_the_end_without_choices(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, COMPLETIONS, completion(stream_options={"include_usage": True}))

    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert chunks[-1]["usage"]["total_tokens"] == 12 + chunks[-1]["usage"]["prompt_tokens"]


async def test_continuous_usage_grows_to_the_last(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}

    chunks = await stream(http, COMPLETIONS, completion(stream_options=options))

    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[-1], counts[-2]) == (12, 12)


async def test_usage_counts_every_choice_of_every_prompt(http: httpx.AsyncClient) -> None:
    body = completion(["The dog", "A cat sat"], n=2, stream_options={"include_usage": True})

    chunks = await stream(http, COMPLETIONS, body)
    whole = (await http.post(COMPLETIONS, json=completion(["The dog", "A cat sat"], n=2))).json()

    assert chunks[-1]["usage"]["completion_tokens"] == 4 * 12
    assert chunks[-1]["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert [text_of(chunks, index) for index in range(4)] == [choice["text"] for choice in whole["choices"]]


async def test_completion_sends_no_chunk_without_text_before_its_end(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, COMPLETIONS, completion())

    assert all(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


@pytest.mark.parametrize(
    "prompt",
    ["emoji 😀 and 👩‍👩‍👧‍👦 family", "中文字符 and ü", "line\u2028separator\u0085next\u2029end", "a\x00b\r\nc"],
    ids=["emoji", "cjk", "line-ends", "control"],
)
async def test_stream_says_what_the_whole_answer_says(http: httpx.AsyncClient, prompt: str) -> None:
    body = completion(prompt, max_tokens=60, seed=1)

    chunks = await stream(http, COMPLETIONS, body)
    whole = (await http.post(COMPLETIONS, json=body)).json()

    assert text_of(chunks) == whole["choices"][0]["text"]
    assert prompt in whole["choices"][0]["text"]
    assert not any("\ufffd" in chunk["choices"][0]["text"] for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["tle do"], "The lit"),
        ("dog", "The little "),
        (["dogs", "dog ran"], "The little "),
        (["The"], ""),
        (["ran", "little dog"], "The "),
    ],
)
async def test_stop_string_across_tokens_ends_the_text_before_it(http: httpx.AsyncClient, stop: Any, text: str) -> None:
    body = completion("The little dog ran to the park", max_tokens=40, stop=stop)

    whole = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]
    chunks = await stream(http, COMPLETIONS, body)

    assert (whole["text"], whole["finish_reason"]) == (text, "stop")
    assert text_of(chunks) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_stop_string_can_be_part_of_the_output(http: httpx.AsyncClient) -> None:
    body = completion("The little dog ran", max_tokens=40, stop=["tle do"], include_stop_str_in_output=True)

    assert (await http.post(COMPLETIONS, json=body)).json()["choices"][0]["text"] == "The little do"


async def test_min_tokens_come_before_any_stop(http: httpx.AsyncClient) -> None:
    body = completion("The little dog ran", max_tokens=40, min_tokens=9, stop=["dog"])

    choice = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]

    assert choice["finish_reason"] == "stop"
    assert choice["text"].count("dog") == 1
    assert choice["text"].startswith("The little dog ran")


async def test_stop_token_ends_the_text_and_is_no_part_of_it(http: httpx.AsyncClient) -> None:
    ids = (await http.post("/tokenize", json={"model": "echo/main", "prompt": "The little dog ran"})).json()["tokens"]
    body = completion(ids, max_tokens=40, stop_token_ids=[ids[3]], return_token_ids=True)

    choice = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]

    before = (await http.post("/detokenize", json={"model": "echo/main", "tokens": ids[1:3]})).json()["prompt"]
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    assert choice["token_ids"] == ids[:4]


async def test_echo_comes_first(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, COMPLETIONS, completion("The dog", echo=True, max_tokens=3))
    whole = (await http.post(COMPLETIONS, json=completion("The dog", echo=True, max_tokens=3))).json()

    assert chunks[0]["choices"][0]["text"].startswith("The dog")
    assert text_of(chunks) == whole["choices"][0]["text"]


async def test_same_seed_gives_the_same_text_streamed_or_not(http: httpx.AsyncClient) -> None:
    whole = (await http.post(CHAT, json=chat(seed=7, temperature=1.5))).json()

    chunks = await stream(http, CHAT, chat(seed=7, temperature=1.5))

    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == whole["choices"][0]["message"]["content"]


async def test_native_stream_ends_with_timings(http: httpx.AsyncClient) -> None:
    events = await stream(http, "/v1/generate", {"model": "echo/main", "prompt": "The little dog", "max_tokens": 8})

    assert len({event["id"] for event in events}) == 1
    assert events[-2]["finish_reason"] == "length"
    assert sum(len(event["token_ids"]) for event in events[:-1]) == 8
    assert events[-1]["usage"]["completion_tokens"] == 8
    assert events[-1]["timings"]["ttft_ms"] > 0


async def test_usage_chunk_tells_the_time_as_vllm_does(http: httpx.AsyncClient) -> None:
    chunks = await stream(http, COMPLETIONS, completion(stream_options={"include_usage": True}))
    whole = (await http.post(CHAT, json=chat())).json()
    several = (await http.post(CHAT, json=chat(n=2))).json()

    for metrics in (chunks[-1]["metrics"], whole["metrics"]):
        assert metrics.keys() == {
            *("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"),
        }
        assert metrics["generation_time_ms"] == pytest.approx(11 * metrics["mean_itl_ms"], abs=0.02)
        inference_ms = metrics["time_to_first_token_ms"] + metrics["generation_time_ms"]
        assert metrics["tokens_per_second"] == pytest.approx(12 * 1000 / inference_ms, rel=0.01)
    assert not any("metrics" in chunk for chunk in chunks[:-1])
    assert several["metrics"] is None


async def test_first_chunk_has_the_prompt_s_ids_if_asked_for(http: httpx.AsyncClient) -> None:
    whole = (await http.post(COMPLETIONS, json=completion(["The dog", "A cat"], return_token_ids=True))).json()
    chunks = await stream(http, COMPLETIONS, completion(["The dog", "A cat"], return_token_ids=True))
    chat_whole = (await http.post(CHAT, json=chat(return_token_ids=True, seed=1))).json()
    chat_chunks = await stream(http, CHAT, chat(return_token_ids=True, n=2, seed=1))

    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["prompt_token_ids"] == whole["choices"][index]["prompt_token_ids"]
        assert not any("prompt_token_ids" in choice for choice in own[1:])
        assert [token for choice in own for token in choice["token_ids"]] == whole["choices"][index]["token_ids"]
    assert [chunk.get("prompt_token_ids") for chunk in chat_chunks] == [
        chat_whole["prompt_token_ids"],
        *[None] * (len(chat_chunks) - 1),
    ]
