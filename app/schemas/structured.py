"""Fields that say what the output has to be: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.sampling import broken_rule
from workers.protocol.specs import Grammar

MAX_CHOICES: Final = 1024

_strict = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

Choices = Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)]


def _schema_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<object>" if isinstance(value, dict) else None


Schema = Annotated[
    Annotated[dict[str, Any], Tag("<object>")] | Annotated[str, Tag("<text>")], Discriminator(_schema_kind)
]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar, and the field of the body that says so."""

    grammar: Grammar
    param: str


class JsonSchemaFormat(BaseModel):
    """OpenAI's wrapping of a schema. It is enforced whatever `strict` says."""

    model_config = _strict

    name: str | None = Field(None, max_length=64)
    description: str | None = Field(None, max_length=4096)
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """The shape that the answer must have. schema: as llama.cpp's clients write one, beside the type."""

    model_config = _strict

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _one_schema_where_needed(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None and self.schema_ is None:
            raise broken_rule("missing_required_parameter", "The type 'json_schema' needs one", param="json_schema")
        if self.schema_ is not None and (self.type == "text" or self.json_schema is not None):
            raise broken_rule("invalid_value", "It goes with types of JSON, without 'json_schema'", param="schema")
        return self

    def constraint(self) -> Constraint | None:
        """What it asks for; None for any text."""
        if self.type == "text":
            return None
        if self.schema_ is not None:
            return Constraint(_json_schema(self.schema_), "response_format.schema")
        if self.json_schema is None or self.type == "json_object":
            return Constraint(Grammar(kind="json_object"), "response_format")
        return Constraint(_json_schema(self.json_schema.schema_), "response_format.json_schema.schema")


class StructuredOutputs(BaseModel):
    """Exactly one of these, as vLLM names them. grammar: in llguidance's dialect of Lark."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    # BaseModel has a deprecated method of this name
    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: Literal[False] | None = None
    disable_additional_properties: Literal[False] | None = None
    whitespace_pattern: None = None
    structural_tag: None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        asked = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(value is not None for value in asked) != 1:
            raise broken_rule("invalid_value", "Give exactly one of json, regex, choice, grammar and json_object")
        return self

    def constraint(self) -> Constraint:
        """What it asks for."""
        if self.json_ is not None:
            return Constraint(_json_schema(self.json_), "structured_outputs.json")
        if self.regex is not None:
            return Constraint(Grammar(kind="regex", text=self.regex), "structured_outputs.regex")
        if self.choice is not None:
            return Constraint(_choice(self.choice), "structured_outputs.choice")
        if self.grammar is not None:
            return Constraint(Grammar(kind="lark", text=self.grammar), "structured_outputs.grammar")
        return Constraint(Grammar(kind="json_object"), "structured_outputs.json_object")


class StructuredField(BaseModel):
    """Mixed into the bodies of every route that generates."""

    structured_outputs: StructuredOutputs | None = None

    def constraint(self) -> Constraint | None:
        """What the output has to be; None for any text."""
        return None if self.structured_outputs is None else self.structured_outputs.constraint()


class StructuredFields(StructuredField):
    """Mixed into OpenAI's bodies. guided_*: what vLLM called `structured_outputs` before."""

    response_format: ResponseFormat | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        params = [constraint.param for constraint in self._constraints()]
        if len(params) > 1:
            raise broken_rule("invalid_value", f"It excludes '{params[1]}'; leave one of them out", param=params[0])
        return self

    def constraint(self) -> Constraint | None:
        """See `StructuredField`."""
        return next(self._constraints(), None)

    def _constraints(self) -> Iterator[Constraint]:
        asked = [None if self.response_format is None else self.response_format.constraint(), super().constraint()]
        yield from (constraint for constraint in asked if constraint is not None)
        if self.guided_json is not None:
            yield Constraint(_json_schema(self.guided_json), "guided_json")
        if self.guided_regex is not None:
            yield Constraint(Grammar(kind="regex", text=self.guided_regex), "guided_regex")
        if self.guided_choice is not None:
            yield Constraint(_choice(self.guided_choice), "guided_choice")
        if self.guided_grammar is not None:
            yield Constraint(Grammar(kind="lark", text=self.guided_grammar), "guided_grammar")


def _choice(texts: list[str]) -> Grammar:
    return Grammar(kind="choice", text=json.dumps(texts))


def _json_schema(schema: Schema) -> Grammar:
    text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    return Grammar(kind="json_schema", text=text)
