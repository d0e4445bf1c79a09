"""JSON answers."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response

_encode: Final = msgspec.json.Encoder().encode


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any msgspec-encodable value as JSON."""
    return Response(_encode(content), status, headers=headers, media_type="application/json")


async def encoded_in_turns(items: Iterable[Any]) -> list[msgspec.Raw]:
    """Each item as JSON, to be part of an answer. Behind each of them others have their turn.

    64 prompts with 16 choices each and 20 alternatives for each token are 10 million numbers, and 9 s.
    """
    encoded: list[msgspec.Raw] = []
    for item in items:
        encoded.append(msgspec.Raw(_encode(item)))
        await asyncio.sleep(0)
    return encoded
