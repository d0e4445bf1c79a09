"""What a case of the table is, and the requests that cases differ from."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from raw_http import KEY, post, request

CHAT, COMPLETIONS, QUANTIZE = "/v1/chat/completions", "/v1/completions", "/v1/quantize"
MODEL = "echo/main"
VOCABULARY = 10**6
IRE = "invalid_request_error"


@dataclass(frozen=True)
class Case:
    """One row. closes: the server ends the connection. headers: names that the answer has."""

    id: str
    data: bytes
    status: int
    code: str | None
    param: str | None = None
    type: str = IRE
    closes: bool = False
    headers: tuple[str, ...] = field(default=())


def chat(**fields: Any) -> bytes:
    """A chat that differs from a good one in these fields; a field that is ... is left out."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **fields}
    return post(CHAT, {name: value for name, value in body.items() if value is not ...})


def message(**fields: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": "hi", **fields}])


def completion(**fields: Any) -> bytes:
    return post(COMPLETIONS, {"model": MODEL, "prompt": "hi", "max_tokens": 2, **fields})


def quantize(**fields: Any) -> bytes:
    return post(QUANTIZE, {"model": "slimstory", "method": "int8", **fields})


def with_text(extra: str, encoding: str = "utf-8") -> bytes:
    """A chat with something written into it that json.dumps would not write."""
    text = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hi"}}], {extra}}}'
    return post(CHAT, text.encode(encoding))


def raw(*lines: str, body: bytes = b"") -> bytes:
    """A request written by hand, with a key."""
    return "\r\n".join([*lines, f"authorization: Bearer {KEY}", "", ""]).encode() + body


def with_authorization(value: bytes) -> bytes:
    return request("GET", "/v1/models", key=None)[:-2] + b"authorization: " + value + b"\r\n\r\n"


def with_schema(schema: Any) -> bytes:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})


def streamed(case: Case) -> Case:
    """The same request as a stream: a refusal comes before the first event, with its status."""
    head, _, body = case.data.partition(b"\r\n\r\n")
    path = head.split()[1].decode()
    return replace(case, id=f"{case.id}-streamed", data=post(path, {**json.loads(body), "stream": True}))


def tool(parameters: dict[str, Any]) -> dict[str, Any]:
    """A function with these parameters."""
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}
