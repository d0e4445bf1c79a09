"""`/v/{variant}/...`: the inference routes once more for each variant, for clients that cannot be told to name a model.

What stands in the path wins over the `model` of a body.
"""

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

# The scope's key of the variant that the path names; absent on paths without the prefix.
VARIANT: Final = "slimserve.variant"
# `<base>` or `<base>/<name>`; of two readings (a variant may be named v1) the shorter one wins.
_PREFIXED: Final = re.compile(
    r"/v/(?P<variant>[^/]+(?:/[^/]+)??)"
    r"(?P<path>/v1/(?:chat/completions|completions|responses|messages|messages/count_tokens|embeddings|models(?:/.+)?)"
    r"|/tokenize|/detokenize|/tokenizer_info)"
)


class VariantPrefix:
    """Middleware that takes the prefix off the path and keeps the variant in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. The scope is changed in place: what the routes note in it is read outside of them."""
        if scope["type"] == "http" and (match := _PREFIXED.fullmatch(scope["path"])) is not None:
            scope[VARIANT] = match["variant"]
            scope["path"] = match["path"]
        await self._app(scope, receive, send)
