import re

import pytest

from app.cli.client import Client, Event, parse_events
from app.cli.root import hoist
from app.cli.terminal import CommandFailed, in_bytes, in_ms


def test_events_are_parsed_with_ids_names_and_several_data_lines() -> None:
    lines = ["id: 7", "event: progress", "data: {", 'data: "a": 1}', "", ": ping", "", "data:x", ""]

    events = list(parse_events(lines))

    assert events == [Event(event="progress", id="7", data='{\n"a": 1}'), Event(data="x")]
    assert events[0].json() == {"a": 1}


def test_event_without_its_blank_line_is_dropped() -> None:
    assert list(parse_events(["data: half"])) == []


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://"], ids=["no-scheme", "ftp", "no-host"])
def test_url_without_scheme_or_host_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape("http://127.0.0.1:8080")) as failure:
        Client(url)

    assert failure.value.exit_code == 2


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"], ids=["plain", "slash", "openai", "openai-slash"])
def test_openai_s_base_url_is_taken_for_the_server_s(tail: str) -> None:
    client = Client(f"http://127.0.0.1:8080{tail}")

    assert client.url == "http://127.0.0.1:8080"
    client.close()


def test_unreachable_server_says_how_to_start_one() -> None:
    client = Client("http://127.0.0.1:9")

    with pytest.raises(CommandFailed, match="slimserve serve"):
        client.get("/v1/variants")

    assert not client.is_ready()
    client.close()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["list", "--url", "U"], ["--url", "U", "list"]),
        (["list", "--url=U", "--json"], ["--url=U", "list", "--json"]),
        (["chat", "--api-key", "K", "hi", "--url", "U"], ["--api-key", "K", "--url", "U", "chat", "hi"]),
        (["chat", "--", "--url", "U"], ["chat", "--", "--url", "U"]),
        (["list", "--url"], ["--url", "list"]),
        (["--version"], ["--version"]),
    ],
    ids=["after", "equals", "both", "after-dashes", "without-value", "other"],
)
def test_global_options_are_found_after_the_command(args: list[str], expected: list[str]) -> None:
    assert hoist(args) == expected


def test_numbers_carry_their_units() -> None:
    assert [in_bytes(count) for count in (None, 0, 999, 1000, 12_345_678, 5e12)] == [
        "-",
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "5.0 TB",
    ]
    assert [in_ms(seconds) for seconds in (None, 0.00123, 0.5)] == ["-", "1.23 ms", "500.0 ms"]
