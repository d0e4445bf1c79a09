"""Strict tools that need not be called, by a model that writes anything but calls: a bias makes it open one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_server import running_server

from app import embedded

# Seconds alone, minutes where other work shares two cores.
pytestmark = pytest.mark.timeout(900)

MARKERS = {"<|reserved_0|>": "[TOOL_CALLS]", "<|reserved_1|>": "<tool_call>", "<|system|>": "<|python_tag|>"}
# Qwen's tokenizers have this one as a token, and not as a special one.
PLAIN = "<tool_call>"
WALK = {
    "type": "object",
    "properties": {"who": {"$ref": "#/$defs/a"}, "far": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["who", "far"],
    "$defs": {"a": {"enum": ["dog", "cat"]}},
}
# the context has room for 512 tokens, and the model's words are short
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "go", "parameters": WALK, "strict": True}},
    {"type": "function", "function": {"name": "nap", "strict": True}},
]
LOOSE = [{**tool, "function": {**tool["function"], "strict": False}} for tool in TOOLS]
FAMILIES = {
    "hermes": "<tool_call>",
    "qwen3_coder": "<tool_call>",
    "mistral": "[TOOL_CALLS]",
    "llama3": "<|python_tag|>",
}


@pytest.fixture(scope="module")
def tokens() -> dict[str, int]:
    tokenizer = json.loads((embedded.model_path() / "tokenizer.json").read_text("utf-8"))
    return {MARKERS[text]: index for text, index in tokenizer["model"]["vocab"].items() if text in MARKERS}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with the embedded model, some of whose tokens have become markers of calls."""
    folder = tmp_path_factory.mktemp("models") / "marked"
    shutil.copytree(embedded.model_path(), folder)
    _rename_tokens(folder / "tokenizer.json")
    with (
        running_server(tmp_path_factory.mktemp("server")) as server,
        httpx.Client(base_url=server.url, timeout=600, trust_env=False) as client,
    ):
        client.post("/v1/load?wait=true", json={"model": str(folder), "name": "marked"}).raise_for_status()
        yield client


def _rename_tokens(path: Path) -> None:
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {MARKERS.get(text, text): index for text, index in vocabulary.items()}
    for token in tokenizer["added_tokens"]:
        token["content"] = MARKERS.get(token["content"], token["content"])
        token["special"] = token["content"] != PLAIN
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "A little dog."}
    body = {"model": "marked", "messages": [message], "tools": TOOLS, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def choose_family(http: httpx.Client, family: str) -> None:
    http.post("/v1/load", json={"model": "marked", "tool_parser": family}).raise_for_status()


def check(name: str, arguments: str) -> None:
    value = json.loads(arguments)
    if name == "nap":
        assert value == {}
    else:
        assert name == "go"
        assert value.keys() == {"who", "far"}
        assert value["who"] in ("dog", "cat")
        assert value["far"] in range(1, 100)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", [*FAMILIES])
def test_call_that_the_model_opens_keeps_to_the_schema(
    http: httpx.Client, tokens: dict[str, int], family: str, seed: int
) -> None:
    choose_family(http, family)
    bias = {str(tokens[FAMILIES[family]]): 100}

    choice = ask(http, logit_bias=bias, parallel_tool_calls=False, seed=seed, temperature=1.0)

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    check(**call["function"])


@pytest.mark.parametrize("family", [*FAMILIES])
def test_without_strict_the_same_model_calls_nothing(http: httpx.Client, tokens: dict[str, int], family: str) -> None:
    choose_family(http, family)
    bias = {str(tokens[FAMILIES[family]]): 100}

    choice = ask(http, logit_bias=bias, tools=LOOSE, seed=0, max_tokens=20)

    assert "tool_calls" not in choice["message"]


def test_model_that_opens_no_call_tells_the_same_story_as_without_strict(http: httpx.Client) -> None:
    choose_family(http, "hermes")

    held, free = (ask(http, temperature=0, tools=tools, max_tokens=60) for tools in (TOOLS, LOOSE))

    assert held["message"] == free["message"]
    assert held["finish_reason"] == free["finish_reason"]
    assert len(held["message"]["content"]) > 40


def test_several_calls_are_each_held(http: httpx.Client, tokens: dict[str, int]) -> None:
    choose_family(http, "hermes")

    choice = ask(http, logit_bias={str(tokens["<tool_call>"]): 100}, seed=1, temperature=1.0)

    # the bias opens the next one until the context is full
    *whole, last = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "length"
    assert len(whole) >= 1
    for call in whole:
        check(**call["function"])
    assert last["function"]["name"] in ("go", "nap")
