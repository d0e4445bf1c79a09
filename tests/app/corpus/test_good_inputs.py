"""Good input at the edges of what is allowed, over a raw socket: all of it is answered."""

import json
from typing import Any

import pytest
from cases import CHAT, COMPLETIONS, MODEL, chat, completion, raw
from corpus_server import Server
from raw_http import Connection, exchange, post, request

pytestmark = pytest.mark.timeout(600)
PROMPT = "The little dog ran to the park 😀"


def chunks_of(server: Server, data: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream that ends well."""
    answer = exchange(server.url, data)
    assert answer.status == 200, answer.body
    *events, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(chat(messages=[{"role": "user", "content": ""}]), id="empty-content"),
        pytest.param(chat(messages=[{"role": "user", "content": "a\0b"}]), id="nul-in-content"),
        pytest.param(completion(prompt=[5] * 4095, max_tokens=1), id="one-token-of-context-left"),
        pytest.param(completion(prompt=""), id="empty-prompt"),
        pytest.param(chat(logprobs=True, top_logprobs=0), id="no-alternatives"),
        pytest.param(chat(stop=["a"] * 16), id="16-stops"),
        pytest.param(chat(seed=-(2**63)), id="smallest-seed"),
        pytest.param(chat(seed=2**63 - 1), id="largest-seed"),
        pytest.param(chat(temperature=2, top_p=0.001, top_k=1, min_p=1), id="every-limit"),
        pytest.param(chat(n=16, max_tokens=1), id="n-16"),
        pytest.param(completion(prompt=["a"] * 64, max_tokens=1), id="64-prompts"),
        pytest.param(chat(tools=[], functions=None, audio=None), id="fields-that-ask-for-nothing"),
        pytest.param(
            request("POST", CHAT, b'{"messages":[{"role":"user","content":"hi"}],"model":"echo/main","max_tokens":1}',
                    content_type="Application/JSON ; charset=utf-8"),
            id="content-type-in-other-letters",
        ),
    ],
)  # fmt: skip
def test_edge_is_answered(server: Server, data: bytes) -> None:
    answer = exchange(server.url, data)

    assert answer.status == 200, answer.body
    assert b"NaN" not in answer.body
    assert b"Infinity" not in answer.body


def test_character_that_spans_tokens_is_never_cut(server: Server) -> None:
    chunks = chunks_of(server, completion(prompt=PROMPT, max_tokens=80, stream=True))

    assert PROMPT in text_of(chunks)
    assert not any("\ufffd" in choice["text"] for chunk in chunks[:-1] for choice in chunk["choices"])


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        pytest.param(["tle do"], "The lit", id="spans-tokens-and-chunks"),
        pytest.param(["T"], "", id="inside-the-first-token"),
        pytest.param(["dog ran far", "dog"], "The little ", id="prefix-of-another"),
        pytest.param(["little dog", "dog ran"], "The ", id="overlapping"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_stop_string_is_found_wherever_it_begins(server: Server, stop: list[str], text: str, stream: bool) -> None:
    data = completion(prompt=PROMPT, max_tokens=60, stop=stop, stream=stream)

    choices = chunks_of(server, data)[-1]["choices"] if stream else exchange(server.url, data).json["choices"]
    said = text_of(chunks_of(server, data)) if stream else choices[0]["text"]

    assert (said, choices[0]["finish_reason"]) == (text, "stop")


def test_two_choices_in_a_stream_are_counted_together(server: Server) -> None:
    chunks = chunks_of(server, chat(n=2, stream=True, max_tokens=5, stream_options={"include_usage": True}))

    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons.count("length") == 2
    assert chunks[-1]["usage"]["completion_tokens"] == 10


def test_twenty_alternatives_are_numbers(server: Server) -> None:
    answer = exchange(server.url, chat(logprobs=True, top_logprobs=20)).json

    for token in answer["choices"][0]["logprobs"]["content"]:
        assert len(token["top_logprobs"]) == 20
        assert all(-9999.0 <= top["logprob"] <= 0 for top in token["top_logprobs"])


def test_greedy_is_the_same_again_with_ties(server: Server) -> None:
    # the echo model prefers its prompt's next token by 50, and all others are equal
    data = completion(prompt=[5, 6, 7], max_tokens=20, temperature=0, logit_bias={"9": 50}, return_token_ids=True)

    first, second = (exchange(server.url, data).json["choices"][0]["token_ids"] for _ in range(2))

    assert first == second
    assert len(first) == 20


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", ["text", "texts", "ids", "lists-of-ids"])
def test_echoed_prompt_is_scored_alike_in_every_form(server: Server, form: str, stream: bool) -> None:
    ids = exchange(server.url, post("/tokenize", {"model": MODEL, "prompt": PROMPT})).json["tokens"]
    prompt = {"text": PROMPT, "texts": [PROMPT], "ids": ids, "lists-of-ids": [ids]}[form]
    fields = {"prompt": prompt, "echo": True, "logprobs": 1, "temperature": 0}

    def scored(max_tokens: int) -> list[dict[str, Any]]:
        data = completion(**fields, max_tokens=max_tokens, stream=stream)
        if stream:
            return [choice for chunk in chunks_of(server, data) for choice in chunk["choices"]]
        return list(exchange(server.url, data).json["choices"])

    for max_tokens in (0, 1):
        choices = scored(max_tokens)
        logprobs = [entry for choice in choices for entry in choice["logprobs"]["token_logprobs"]]
        tops = [top for choice in choices for top in choice["logprobs"]["top_logprobs"]]
        assert len(logprobs) == len(tops) == len(ids) + max_tokens
        assert (logprobs[0], tops[0]) == (None, None)
        assert all(logprob in top.values() for logprob, top in zip(logprobs[1:], tops[1:], strict=True))
        # the echo model is certain of its own prompt: greedy, to the last bit
        assert all(logprob == max(top.values()) for logprob, top in zip(logprobs[1:], tops[1:], strict=True))
        assert PROMPT in "".join(choice["text"] for choice in choices)


def test_several_prompts_are_scored_apart(server: Server) -> None:
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]

    answer = exchange(server.url, completion(prompt=prompts, max_tokens=0, echo=True, logprobs=0)).json

    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [3, 2, 4]
    assert answer["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 0,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_head_has_no_body(server: Server) -> None:
    with Connection(server.url) as connection:
        connection.send(request("HEAD", "/healthz", key=None) + request("GET", "/version"))

        assert connection.read_answer(is_head=True).status == 200
        assert connection.read_answer().status == 200


def test_client_that_asks_first_is_told_to_go_on(server: Server) -> None:
    head, _, body = completion().partition(b"\r\n\r\n")
    with Connection(server.url) as connection:
        connection.send(head + b"\r\nexpect: 100-continue\r\n\r\n")
        interim = connection.read_answer()
        connection.send(body)

        assert (interim.status, connection.read_answer().status) == (100, 200)


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    answer = exchange(server.url, raw("GET /v1/models HTTP/1.0"), waits_for_close=True)

    assert (answer.status, answer.is_closed) == (200, True)
    assert answer.json["data"]


def test_pipelined_pair_is_answered_in_order(server: Server) -> None:
    with Connection(server.url) as connection:
        connection.send(completion(max_tokens=3) + request("GET", "/v1/models/echo/main"))

        assert connection.read_answer().json["usage"]["completion_tokens"] == 3
        assert connection.read_answer().json["id"] == MODEL


@pytest.mark.parametrize("upper", [False, True], ids=["lower", "upper"])
def test_header_names_are_case_insensitive(server: Server, upper: bool) -> None:
    head, _, body = completion().partition(b"\r\n\r\n")
    line, *headers = head.split(b"\r\n")
    named = [name.upper() if upper else name.lower() for name, _, _ in (header.partition(b":") for header in headers)]
    values = [header.partition(b":")[2] for header in headers]

    lines = [line, *(name + b":" + value for name, value in zip(named, values, strict=True))]

    assert exchange(server.url, b"\r\n".join(lines) + b"\r\n\r\n" + body).status == 200


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8080", "localhost", "LOCALHOST:8080", "127.0.0.1"])
def test_every_name_of_the_machine_is_a_host(server: Server, host: str) -> None:
    assert exchange(server.url, raw("GET /v1/models HTTP/1.1", f"host: {host}")).status == 200


def test_body_in_chunks_is_read(server: Server) -> None:
    body = json.dumps({"model": MODEL, "prompt": "hi", "max_tokens": 1}).encode()
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    chunked = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
    headers = ("host: x", "content-type: application/json", "transfer-encoding: chunked")

    assert exchange(server.url, raw(f"POST {COMPLETIONS} HTTP/1.1", *headers, body=chunked)).status == 200
