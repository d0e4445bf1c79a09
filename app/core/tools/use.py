"""Which tools a chat may use, and the grammar of the calls that it must make."""

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.core.structured import in_lark, json_schema_grammar
from app.core.tools.calls import Family
from workers.protocol.specs import Grammar

# A small model that is free to add calls adds them until its tokens are used up.
MAX_FORCED_CALLS: Final = 16
_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One function. parameters: JSON Schema of its arguments; None if it has none.

    strict: whether calls that need not be made keep to it; None if the client has not said.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

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


@dataclass(frozen=True, slots=True)
class EnforcedSchema:
    """A function's schema in the grammar of an answer, and the field of the body that it comes from."""

    function: str
    grammar: Grammar
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """choice: whether calls may or must be made; named: of this function. is_parallel: more than one at a time.

    schema_field: where a tool of the client's body has its schema, for error messages. is_strict_by_default: functions
    of which nothing is said are strict where their schema can be enforced.
    """

    tools: tuple[Tool, ...] = ()
    choice: Literal["none", "auto", "required", "named"] = "auto"
    named: str = ""
    is_parallel: bool = True
    schema_field: str = "function.parameters"
    is_strict_by_default: bool = False

    @property
    def must_call(self) -> bool:
        """True if the output is enforced to be a call."""
        return self.choice in ("required", "named")

    @property
    def functions(self) -> dict[str, dict[str, Any] | None]:
        """The parameters of each, by its name."""
        return {tool.name: tool.parameters for tool in self.tools}

    def tool(self, name: str) -> Tool:
        """The function of this name, which must be one of them."""
        return next(tool for tool in self.tools if tool.name == name)

    def constrains(self, answer: Grammar | None) -> bool:
        """True if calls can only come as a grammar lets them. answer: what the output has to be if it is no call."""
        return self.must_call or (bool(self.tools) and answer is not None)

    def holds_calls(self, answer: Grammar | None) -> bool:
        """True if text is free, and calls keep to the schemas of strict functions."""
        return not self.constrains(answer) and any(tool.strict for tool in self.tools)

    def enforced_schemas(self, answer: Grammar | None) -> list[EnforcedSchema]:
        """The functions' schemas in the grammar."""
        enforces_all = self.constrains(answer)
        return [
            EnforcedSchema(tool.name, json_schema_grammar(tool.forced_schema()), f"tools[{index}].{self.schema_field}")
            for index, tool in enumerate(self.tools)
            if (enforces_all or tool.strict) and self.named in ("", tool.name)
        ]

    def grammar(self, family: Family, answer: Grammar | None) -> Grammar | None:
        """The only output there can be: the arguments of the named function, or calls in the family's own syntax.

        answer: another output that is right, a JSON Schema or object, where the model need not call; without it None.
        A call can end the output, and nothing but a separator go on: a list would have to be closed, which small
        models do not think of.
        """
        if self.choice == "named":
            return json_schema_grammar(self.tool(self.named).forced_schema())
        if not self.constrains(answer):
            return answer
        begin, end, separator = "", "", "; "
        if family.end is not None:
            begin, end, separator = f"{family.begin}\n", f"\n{family.end}", "\n"
        more = f" ({json.dumps(separator)} call){{0,{MAX_FORCED_CALLS - 1}}}" if self.is_parallel else ""
        lines = [f"start: calls{'' if self.must_call else ' | answer'}", f"calls: call{more}"]
        if answer is not None and not self.must_call:
            lines += [f"answer: {in_lark(answer)}"]
        lines += [f"call: {' | '.join(f'call_{index}' for index in range(len(self.tools)))}"]
        for index, tool in enumerate(self.tools):
            head = f'{begin}{{"name": {json.dumps(tool.name)}, "{family.arguments_key}": '
            lines += [f"call_{index}: {json.dumps(head)} arguments_{index} {json.dumps('}' + end)}"]
            lines += [f"arguments_{index}: {in_lark(json_schema_grammar(tool.forced_schema()))}"]
        return Grammar(kind="lark", text="\n".join(lines))
