"""What a request is answered does not depend on who else asks, and its numbers are those of the tokenizer."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cli_server import CliServer, running_server
from tokenizers import Tokenizer

from app import embedded

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

MODEL = "slimstory"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "Once upon a time, there was a little"
NUM_TOKENS = 24
# Nats. The numbers are the same to the bit on the processors seen so far. Sums in another order gave 0.003 to 0.1.
LOGPROB_TOLERANCE = 1e-4

Answer = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CliServer]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def http(server: CliServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(embedded.model_path() / "tokenizer.json"))


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "return_token_ids": True, **fields}
    return COMPLETIONS, body


def chat(content: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": content}]
    return CHAT, {"model": MODEL, "messages": messages, "max_tokens": NUM_TOKENS, "return_token_ids": True, **fields}


def answer(http: httpx.Client, request: tuple[str, dict[str, Any]]) -> Answer:
    response = http.post(request[0], json=request[1])
    assert response.status_code == 200, response.text
    content: Answer = response.json()
    return content


async def answers_at_once(server: CliServer, requests: list[tuple[str, dict[str, Any]]]) -> list[Answer]:
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:
        responses = await asyncio.gather(*(client.post(path, json=body) for path, body in requests))
    return [response.json() for response in responses]


def said(answer: Answer) -> list[tuple[Any, ...]]:
    """Text, ids and reason of every choice."""
    return [
        (
            choice["index"],
            choice.get("text") or choice["message"]["content"],
            choice["token_ids"],
            choice["finish_reason"],
        )
        for choice in answer["choices"]
    ]


def logprobs_of(answer: Answer) -> list[float]:
    found: list[float] = []
    for choice in answer["choices"]:
        lists = choice["logprobs"]
        if lists is not None:
            found += lists["token_logprobs"] if "text" in choice else [item["logprob"] for item in lists["content"]]
    return found


def stop_across_tokens(answer: Answer) -> tuple[str, str]:
    """A string that begins inside one token and ends inside another, and the text before its first occurrence."""
    tokens, text = answer["choices"][0]["logprobs"]["tokens"], answer["choices"][0]["text"]
    for first, second, third in zip(tokens[4:], tokens[5:], tokens[6:], strict=False):
        stop = first[-1] + second + third[0]
        if len(first) > 1 and len(third) > 1 and text.index(stop) > 0:
            return stop, text[: text.index(stop)]
    raise AssertionError(f"no such string in {tokens}")


async def test_sixteen_requests_at_once_are_answered_as_each_alone(server: CliServer, http: httpx.Client) -> None:
    stop, _ = stop_across_tokens(answer(http, completion(temperature=0, logprobs=0)))
    requests = [
        completion(temperature=0, stop=[stop], logprobs=2),
        completion(temperature=0, stop=["never said", stop], include_stop_str_in_output=True),
        completion(n=4, seed=3, temperature=1.2),
        completion(n=4, seed=3, temperature=0.8, top_p=0.9, top_k=20, logprobs=3),
        completion(prompt=[PROMPT, "The dog"], n=2, seed=5, presence_penalty=0.5),
        completion(echo=True, logprobs=1, temperature=0, max_tokens=3),
        completion(echo=True, logprobs=1, max_tokens=0),
        completion(temperature=0, max_tokens=300),
        *(
            chat(f"Tell me a story about {topic}.", seed=11, temperature=0.9)
            for topic in ("a cat", "rain", "a red ball")
        ),
        *(chat("Tell me a story.", seed=seed, n=2, logprobs=True, top_logprobs=2) for seed in (1, 2)),
        chat("Hello!", temperature=0, stop="."),
        chat("Hello!", temperature=0, max_tokens=1, logprobs=True),
        chat("Hello!", seed=4, min_tokens=NUM_TOKENS, frequency_penalty=1.0),
    ]
    assert len(requests) == 16

    alone = [answer(http, request) for request in requests]
    together = await answers_at_once(server, requests)

    for one, other in zip(alone, together, strict=True):
        assert said(other) == said(one)
        assert other["usage"]["total_tokens"] == one["usage"]["total_tokens"]
        assert other["usage"]["completion_tokens"] == one["usage"]["completion_tokens"]
        assert logprobs_of(other) == pytest.approx(logprobs_of(one), abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize("method", ["rtn", "int8", "nf4"])
async def test_compressed_variant_scores_a_prompt_alike_alone_and_among_others(
    server: CliServer, http: httpx.Client, method: str
) -> None:
    job = http.post("/v1/quantize", json={"model": MODEL, "method": method}).json()
    http.get(f"/v1/jobs/{job['id']}/events", timeout=None)
    loaded = http.post("/v1/load", json={"model": job["variant"], "wait": True})
    assert loaded.status_code == 200, loaded.text
    # 3 to 16 tokens, together more than any product takes at once
    requests = [
        completion(model=job["variant"], prompt=PROMPT[: 2 * number + 4], echo=True, logprobs=1, max_tokens=0)
        for number in range(16)
    ]

    alone = [answer(http, request) for request in requests]
    together = await answers_at_once(server, requests)

    for one, other in zip(alone, together, strict=True):
        # the first token has none
        assert logprobs_of(other)[1:] == pytest.approx(logprobs_of(one)[1:], abs=LOGPROB_TOLERANCE)


def test_usage_is_what_the_tokenizer_counts(http: httpx.Client, tokenizer: Tokenizer) -> None:
    whole = answer(http, completion(prompt=[PROMPT, "The dog"], n=2, seed=5))

    prompts = [len(tokenizer.encode(prompt).ids) for prompt in (PROMPT, "The dog")]
    ids = [choice["token_ids"] for choice in whole["choices"]]
    assert whole["usage"]["prompt_tokens"] == sum(prompts)
    assert whole["usage"]["completion_tokens"] == sum(len(tokens) for tokens in ids)
    assert [choice["text"] for choice in whole["choices"]] == [
        tokenizer.decode(tokenizer.encode(prompt).ids + tokens)[len(tokenizer.decode(tokenizer.encode(prompt).ids)) :]
        for prompt, tokens in zip([PROMPT, PROMPT, "The dog", "The dog"], ids, strict=True)
    ]


def test_stop_string_across_tokens_ends_the_text_before_it(http: httpx.Client) -> None:
    stop, before = stop_across_tokens(answer(http, completion(temperature=0, logprobs=0)))

    cut = answer(http, completion(temperature=0, stop=stop))

    (choice,) = cut["choices"]
    assert (choice["text"], choice["finish_reason"]) == (before, "stop")
    assert cut["usage"]["completion_tokens"] == len(choice["token_ids"]) < NUM_TOKENS


def test_four_choices_of_one_seed_differ_and_come_again(http: httpx.Client) -> None:
    first, second = (answer(http, completion(n=4, seed=9, temperature=1.0)) for _ in range(2))
    unseeded = [answer(http, completion(temperature=1.0))["choices"][0]["text"] for _ in range(4)]

    assert said(first) == said(second)
    assert len({choice["text"] for choice in first["choices"]}) == 4
    assert len(set(unseeded)) > 1


def test_logprobs_stand_beside_their_tokens(http: httpx.Client) -> None:
    fields = {"temperature": 0, "logprobs": 2, "echo": True, "add_special_tokens": False}
    (text,) = answer(http, completion(**fields))["choices"]
    (talk,) = answer(http, chat("Hello!", temperature=0, logprobs=True, top_logprobs=2))["choices"]

    lists = text["logprobs"]
    starts = zip(lists["tokens"], lists["text_offset"], strict=True)
    assert all(text["text"][offset : offset + len(token)] == token for token, offset in starts)
    generated = lists["token_logprobs"][-NUM_TOKENS:], lists["top_logprobs"][-NUM_TOKENS:]
    assert all(logprob == max(top.values()) for logprob, top in zip(*generated, strict=True))
    content = talk["logprobs"]["content"]
    assert len(content) == len(talk["token_ids"])
    assert b"".join(bytes(item["bytes"]) for item in content).decode() == talk["message"]["content"]


@pytest.mark.parametrize("max_tokens", [1, 7])
def test_limit_is_the_reason_when_it_is_reached(http: httpx.Client, max_tokens: int) -> None:
    whole = answer(http, completion(temperature=0, max_tokens=max_tokens))

    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == max_tokens


def test_stop_is_the_reason_when_the_model_ends_it(http: httpx.Client, tokenizer: Tokenizer) -> None:
    """The model is made to want its end of text, and to wait for it."""
    eos = tokenizer.token_to_id("<|eos|>")

    (choice,) = answer(http, completion(temperature=0, min_tokens=5, logit_bias={str(eos): 100}))["choices"]

    assert choice["finish_reason"] == "stop"
    assert len(choice["token_ids"]) == 6
    assert choice["token_ids"][-1] == eos
    assert "<|eos|>" not in choice["text"]
