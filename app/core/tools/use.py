"""Which tools a chat may use, and the grammar of the calls that it must make."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.core.structured import in_lark, json_schema_grammar
from workers.protocol.specs import Grammar

# A small model that is free to add calls adds them until its tokens are used up.
MAX_FORCED_CALLS: Final = 16
_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function. parameters: JSON Schema of its arguments; None if it has none."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it, which is as OpenAI writes it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self._schema()
        return {"type": "function", "function": function}

    def forced_schema(self) -> dict[str, Any]:
        """What enforced arguments are: an object, with no members but those that the function names."""
        schema = {**self._schema(), "type": "object"}
        is_plain = "properties" in schema and not schema.keys() & {
            "allOf",
            "anyOf",
            "oneOf",
            "$ref",
            "patternProperties",
        }
        return {"additionalProperties": False, **schema} if is_plain else schema

    def _schema(self) -> dict[str, Any]:
        return _NO_PARAMETERS if self.parameters is None else self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """choice: whether calls may or must be made; named: of this function. is_parallel: more than one at a time."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required", "named"] = "auto"
    named: str = ""
    is_parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """Of the functions."""
        return frozenset(tool.name for tool in self.tools)

    def grammar(self) -> Grammar | None:
        """The only output there can be: the arguments of the named function, or one or more calls as JSON."""
        if self.choice == "named":
            return json_schema_grammar(next(tool for tool in self.tools if tool.name == self.named).forced_schema())
        if self.choice != "required":
            return None
        start = f'start: "[" call (", " call){{0,{MAX_FORCED_CALLS - 1}}} "]"' if self.is_parallel else "start: call"
        lines = [start, f"call: {' | '.join(f'call_{index}' for index in range(len(self.tools)))}"]
        for index, tool in enumerate(self.tools):
            head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
            lines += [f'call_{index}: {head} arguments_{index} "}}"']
            lines += [f"arguments_{index}: {in_lark(json_schema_grammar(tool.forced_schema()))}"]
        return Grammar(kind="lark", text="\n".join(lines))
