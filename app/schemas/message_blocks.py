"""Blocks of Anthropic's messages, and the tools beside them."""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.chat import MAX_PARTS, TextPart, TextParts
from app.schemas.sampling import broken_rule, text_or_list
from app.schemas.tools import FunctionName, refuse_other_types

_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

Texts = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextParts, Tag("<list>")],
    Discriminator(text_or_list),
]


class ThinkingBlock(BaseModel):
    """What the model thought; the signature is not looked at, as nothing here makes any."""

    model_config = _loose

    thinking: str


class ToolUseBlock(BaseModel):
    """A call that the model has made."""

    model_config = _loose

    id: str = Field(min_length=1, max_length=256)
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any]


class ToolResultBlock(BaseModel):
    """What a tool gave back. That it is an error is for the text to say: no chat template has another place for it."""

    model_config = _loose

    tool_use_id: str = Field(min_length=1, max_length=256)
    content: Texts | None = None


class OtherBlock(BaseModel):
    """An image, a document, what a server of Anthropic's has done: always refused."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: Any) -> Any:
        types = ", ".join(f"'{name}'" for name in _TAGS)
        raise broken_rule("unsupported_content", f"Only blocks of these types are supported: {types}")


_TAGS: Final = {
    "text": "<text>",
    "thinking": "<thinking>",
    "tool_use": "<tool_use>",
    "tool_result": "<tool_result>",
}


def _block_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return _TAGS.get(kind, "<other>") if isinstance(kind, str) else "<text>"


Block = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(_block_kind),
]

Blocks = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Block], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<list>")],
    Discriminator(text_or_list),
]


class Tool(BaseModel):
    """Something that the model may call. input_schema: JSON Schema of an object. strict: every call keeps to it."""

    model_config = _loose

    name: FunctionName
    description: str | None = Field(None, max_length=2**16)
    input_schema: dict[str, Any]
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_custom(cls, value: Any) -> Any:
        return refuse_other_types(value, "custom")


class ToolChoice(BaseModel):
    """Whether a tool may or must be called. name: of the only one, where the type is `tool`."""

    model_config = _loose

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _has_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise broken_rule("missing_required_parameter", "The type 'tool' needs one", param="name")
        return self


class Thinking(BaseModel):
    """Whether the model is to think. budget_tokens: for how long, where its template has a place for that."""

    model_config = _loose

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
