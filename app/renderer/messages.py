"""What the front end and the renderer say to each other."""

from typing import Any

from msgspec import Struct


class Render(Struct, frozen=True, kw_only=True, tag=True):
    """Run one template. `variables` are JSON values."""

    template: str
    variables: dict[str, Any]


class Rendered(Struct, frozen=True, kw_only=True, tag=True):
    """The template's output."""

    text: str


class Rejected(Struct, frozen=True, kw_only=True, tag=True):
    """The template does not compile, or it refused these messages; `message` is for the client to read."""

    message: str


FromRenderer = Rendered | Rejected
