"""JSON answers."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response

_encode: Final = msgspec.json.Encoder().encode


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any msgspec-encodable value as JSON."""
    return Response(_encode(content), status, headers=headers, media_type="application/json")
