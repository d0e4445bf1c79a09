"""Grammars of requests: how they are made, and the check that each passes before a worker sees it.

For outputs of another shape, a tool call for instance: check each schema of the client's with `check`, put it into a
Lark grammar with `in_lark`, and hand `Grammar(kind="lark", ...)` to the request in its SamplingParams.
"""

import json
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from app.core.sandbox import Sandbox
from app.core.text import TextModel
from app.errors import InvalidRequest
from app.renderer.messages import Check, Rejected
from workers.protocol.specs import JSON_WHITESPACE, MAX_GRAMMAR_BYTES, Grammar

TIME_LIMIT_S: Final = 5.0
MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a refusal speaks of a grammar."""

    name: str
    code: str


_KINDS: Final = {
    "json_schema": _Kind(name="The JSON Schema", code="invalid_schema"),
    "json_object": _Kind(name="The JSON object", code="invalid_schema"),
    "regex": _Kind(name="The regular expression", code="invalid_regex"),
    "choice": _Kind(name="The choice", code="invalid_choice"),
    "lark": _Kind(name="The grammar", code="invalid_grammar"),
}


# What would end a regular expression of Lark, behind escapes of anything else.
_LINE_ENDS: Final = re.compile(r"\\.|/|\n", re.DOTALL)


def json_schema_grammar(schema: dict[str, Any] | bool) -> Grammar:
    """Values of this schema, with their properties in its order."""
    return Grammar(kind="json_schema", text=json.dumps(schema, ensure_ascii=False, separators=(",", ":")))


def in_lark(grammar: Grammar) -> str:
    """A grammar as a term of a Lark rule."""
    match grammar.kind:
        case "regex":
            return f"/{_LINE_ENDS.sub(_escaped, grammar.text)}/"
        case "choice":
            return f"({' | '.join(json.dumps(text) for text in json.loads(grammar.text))})"
        case "lark":
            return f"%lark {{\n{grammar.text}\n}}"
        case "json_schema" | "json_object":
            schema = json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"}
            options = {"x-guidance": {"whitespace_pattern": JSON_WHITESPACE}}
            return f"%json {json.dumps(({} if schema is True else schema) | options)}"


def _escaped(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found[0], found[0])


class GrammarChecker:
    """Has grammars compiled in a process of their own, which a hostile one may stall or kill."""

    def __init__(self) -> None:
        self._sandbox = Sandbox(TIME_LIMIT_S)
        self._accepted: OrderedDict[Check, None] = OrderedDict()
        self._not_enforceable: OrderedDict[Grammar, None] = OrderedDict()

    async def stop(self) -> None:
        """End the process."""
        await self._sandbox.stop()

    async def check(self, grammar: Grammar, text_model: TextModel, *, param: str, owner: str = "") -> None:
        """Raises InvalidRequest for a grammar that cannot be enforced. param: its field; owner: whose it is."""
        if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
            raise _refused(grammar, f"{owner} has more than {MAX_GRAMMAR_BYTES} bytes; make it shorter", param)
        special_tokens = tuple(text_model.special_token_texts().items()) if grammar.kind == "lark" else ()
        check = Check(grammar=grammar, special_tokens=special_tokens)
        if check in self._accepted:
            self._accepted.move_to_end(check)
            return
        answer = await self._sandbox.ask(check)
        if answer is None:
            limits = f"{self._sandbox.time_limit_s:.0f} s or 512 MiB"
            raise _refused(grammar, f"{owner} took more than {limits} to compile; make it simpler", param)
        if isinstance(answer, Rejected):
            raise _refused(grammar, f"{owner} cannot be enforced: {answer.message.rstrip('.')}", param)
        _remember(self._accepted, check)

    async def can_enforce(self, grammar: Grammar, text_model: TextModel) -> bool:
        """Whether `check` accepts it. A refusal is remembered: who never asked for a grammar is not to wait twice."""
        if grammar in self._not_enforceable:
            self._not_enforceable.move_to_end(grammar)
            return False
        try:
            await self.check(grammar, text_model, param="")
        except InvalidRequest:
            _remember(self._not_enforceable, grammar)
            return False
        return True


def _remember(memory: OrderedDict[Any, None], key: Check | Grammar) -> None:
    memory[key] = None
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)


def _refused(grammar: Grammar, why: str, param: str) -> InvalidRequest:
    kind = _KINDS[grammar.kind]
    return InvalidRequest(f"{kind.name}{why}.", code=kind.code, param=param)
