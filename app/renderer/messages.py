"""What the front end and a renderer say to each other."""

from typing import Any

from msgspec import Struct

from workers.protocol.specs import Grammar


class Render(Struct, frozen=True, kw_only=True, tag=True):
    """Run one template. `variables` are JSON values."""

    template: str
    variables: dict[str, Any]


class Check(Struct, frozen=True, kw_only=True, tag=True):
    """Compile one grammar. special_tokens: those of the model, by id, which a grammar of the kind `lark` may name."""

    grammar: Grammar
    special_tokens: tuple[tuple[int, str], ...] = ()


class Rendered(Struct, frozen=True, kw_only=True, tag=True):
    """The template's output."""

    text: str


class Accepted(Struct, frozen=True, kw_only=True, tag=True):
    """The grammar compiles, and some text matches its beginning."""


class Rejected(Struct, frozen=True, kw_only=True, tag=True):
    """The template or the grammar does not compile, or it refused its input; `message` is for the client to read."""

    message: str


ToRenderer = Render | Check
FromRenderer = Rendered | Accepted | Rejected
