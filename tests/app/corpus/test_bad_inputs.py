"""Every bad input over a raw socket against a running server: its answer, and that nobody else is harmed."""

import time
from itertools import pairwise

import pytest
from bad_inputs import CASES, STREAMED
from cases import MODEL, Case, chat, completion
from corpus_server import MAX_QUEUE, Server
from raw_http import Connection, exchange, post, request

pytestmark = pytest.mark.timeout(600)
# The table grew it by 0.03 MiB, and now and then by 6.
MAX_GROWTH_BYTES = 10 * 2**20


def check(url: str, case: Case) -> None:
    """The answer is the one of the table."""
    answer = exchange(url, case.data, waits_for_close=case.closes)

    error = answer.error
    said = (answer.status, error["type"], error["code"], error["param"])
    assert said == (case.status, case.type, case.code, case.param), error["message"]
    assert answer.is_closed is case.closes
    assert set(case.headers) <= answer.headers.keys()


def works(url: str) -> bool:
    """A good request is answered."""
    return exchange(url, completion()).status == 200


@pytest.mark.parametrize("case", [*CASES, *STREAMED], ids=lambda case: case.id)
def test_bad_input_gets_its_answer_and_the_next_request_works(server: Server, case: Case) -> None:
    check(server.url, case)

    assert works(server.url)


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "fields",
    [{"messages": [{"role": "user", "content": "dog " * 5000}]}, {"max_tokens": 4096}],
    ids=["prompt", "completion"],
)
def test_b66_message_begins_as_clients_look_for_it(server: Server, fields: dict[str, object]) -> None:
    message = exchange(server.url, chat(**fields)).error["message"]

    assert message.startswith("This model's maximum context length is 4096 tokens. However, you requested ")


def test_b41_every_wrong_key_gets_the_same_body(server: Server) -> None:
    bodies = {exchange(server.url, case.data).body for case in CASES if case.status == 401}

    assert len(bodies) == 1


def test_b53_loading_model_says_when_to_come_back(server: Server) -> None:
    with Connection(server.url) as connection:
        # both at once, so that the second does not come when it has been loaded
        connection.send(post("/v1/load", {"model": "slimstory"}) + chat(model="slimstory"))
        loading, answer = connection.read_answer(), connection.read_answer()

    assert loading.status == 202
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        503,
        "service_unavailable_error",
        "model_loading",
    )
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert exchange(server.url, post("/v1/unload", {"model": "slimstory", "force": True})).status == 200


def test_b82_top_k_above_the_vocabulary_is_all_of_it(server: Server) -> None:
    assert exchange(server.url, chat(top_k=2**31 - 1)).status == 200


@pytest.mark.parametrize("name", ["user", "metadata", "store", "service_tier"])
def test_b98_harmless_fields_are_accepted(server: Server, name: str) -> None:
    answer = exchange(server.url, chat(**{name: "x"}))

    assert answer.status == 200
    assert "x-slimserve-ignored" not in answer.headers


def test_b97_unknown_field_is_named(server: Server) -> None:
    # names that could be a header of their own are left out
    answer = exchange(server.url, chat(foo=1, bar=[2], **{"b\r\nad": 3}))

    assert (answer.status, answer.headers["x-slimserve-ignored"]) == (200, "foo, bar")


def test_b99_echo_with_logprobs_is_good(server: Server) -> None:
    assert exchange(server.url, completion(echo=True, logprobs=1, max_tokens=0)).status == 200


def test_b100_full_queue_says_when_to_come_back(server: Server) -> None:
    streams = [Connection(server.url) for _ in range(MAX_QUEUE)]
    try:
        for stream in streams:
            stream.send(completion(max_tokens=4000, stream=True))
        _wait_for_admitted(server.url, MAX_QUEUE)

        answer = exchange(server.url, completion())
    finally:
        for stream in streams:
            stream.sock.close()

    assert (answer.status, answer.error["type"], answer.error["code"]) == (429, "rate_limit_error", "queue_full")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    _wait_for_admitted(server.url, 0)
    assert works(server.url)


def test_whole_table_does_not_grow_the_server(server: Server) -> None:
    def play() -> int:
        for case in CASES:
            check(server.url, case)
        return int(server.process.memory_info().rss)

    # The first time fills caches, and what an allocator keeps comes in steps; what leaks grows every time.
    sizes = [play() for _ in range(4)]
    growths = [after - before for before, after in pairwise(sizes)]

    assert min(growths) < MAX_GROWTH_BYTES


def _wait_for_admitted(url: str, wanted: int) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        variant = exchange(url, request("GET", f"/v1/variants/{MODEL}")).json
        if variant["running"] + variant["waiting"] == wanted:
            return
        assert time.monotonic() < deadline_s, variant
        time.sleep(0.02)
