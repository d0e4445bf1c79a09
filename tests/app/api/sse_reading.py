"""Reads a stream as a strict client does."""

import json
from typing import Any

import httpx

MODEL = "echo/main"


def chat(content: str = "The little dog", **fields: Any) -> dict[str, Any]:
    """A body for /v1/chat/completions."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 12, **fields}


def completion(prompt: Any = "The little dog", **fields: Any) -> dict[str, Any]:
    """A body for /v1/completions."""
    return {"model": MODEL, "prompt": prompt, "max_tokens": 12, **fields}


def events_of(text: str) -> list[str]:
    """The data of every event; anything that is neither an event nor a comment is an error."""
    data: list[str] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        assert "\n" not in block
        if not block.startswith(":"):
            assert block.startswith("data: ")
            data.append(block.removeprefix("data: "))
    return data


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends well."""
    answer = await client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events_of(answer.text)
    assert last == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]
