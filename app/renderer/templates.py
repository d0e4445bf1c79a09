"""jinja2 as published chat templates expect it: the dialect of transformers, in a sandbox that cannot be written to."""

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARS: Final = 8 * 2**20
MAX_ERROR_CHARS: Final = 200


class TemplateRefused(Exception):
    """The template cannot be rendered with these messages; the text is for the client."""


class GenerationBlocks(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it means its own content."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration, a class attribute that it reads

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body, in its place."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(source: str, variables: dict[str, Any]) -> str:
    """The template's output. Raises TemplateRefused for whatever the template or its input is to blame for."""
    pieces: list[str] = []
    size = 0
    try:
        for piece in _compiled(source).generate(**variables):
            size += len(piece)
            if size > MAX_OUTPUT_CHARS:
                raise TemplateRefused("the chat template's output is too long")
            pieces.append(piece)
    except TemplateError as error:
        raise TemplateRefused(_said(error)) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, OverflowError) as error:
        raise TemplateRefused("the chat template does not fit these messages") from error
    except (RecursionError, MemoryError) as error:
        raise TemplateRefused("the chat template needs too much memory for these messages") from error
    return "".join(pieces)


def _said(error: TemplateError) -> str:
    text = (error.message or "it cannot be rendered").splitlines()[0]
    return f"the chat template refused these messages: {text[:MAX_ERROR_CHARS]}"


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: jinja2's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=options.get("separators"),
        sort_keys=bool(options.get("sort_keys", False)),
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
