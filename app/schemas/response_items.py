"""Items of the input of POST /v1/responses, and the tools beside it: flat where chat's have a level more."""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.chat import MAX_MESSAGES, MAX_PARTS, TextPart
from app.schemas.sampling import broken_rule, text_or_list
from app.schemas.tools import FunctionCall, FunctionChoice, FunctionDefinition, refuse_other_types

_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class InputPart(TextPart):
    """One part of an item's content: of a user's message, or of an answer that is sent back."""

    text_types = ("input_text", "output_text", "text")


InputContent = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<list>")],
    Discriminator(text_or_list),
]


class InputMessage(BaseModel):
    """A message; id, status and phase of an earlier answer are not looked at."""

    model_config = _loose

    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent

    @model_validator(mode="before")
    @classmethod
    def _known_type(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type", "message") != "message":
            types = ", ".join(f"'{name}'" for name in ("message", *_TAGS))
            raise broken_rule("unsupported_content", f"Only items of these types are supported: {types}")
        return value


class CallItem(FunctionCall):
    """A call that the model has made."""

    call_id: str = Field(min_length=1, max_length=256)


class CallOutputItem(BaseModel):
    """What the function gave back."""

    model_config = _loose

    call_id: str = Field(min_length=1, max_length=256)
    output: InputContent


class ReasoningPart(TextPart):
    """A stretch of thinking."""

    text_types: ClassVar[tuple[str, ...]] = ("reasoning_text",)


class ReasoningItem(BaseModel):
    """What the model thought; a summary, and what another server has encrypted, are not looked at."""

    model_config = _loose

    content: Annotated[list[ReasoningPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None

    def text(self) -> str:
        """All of it."""
        return "\n".join(part.text for part in self.content or ())


_TAGS: Final = {"function_call": "<call>", "function_call_output": "<output>", "reasoning": "<reasoning>"}


def _item_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return _TAGS.get(kind, "<message>") if isinstance(kind, str) else "<message>"


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[CallItem, Tag("<call>")]
    | Annotated[CallOutputItem, Tag("<output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(_item_kind),
]

Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES - 1), Tag("<list>")],
    Discriminator(text_or_list),
]


def check_answered_calls(items: list[Item]) -> None:
    """Raises a broken rule if an output belongs to no call before it."""
    known: set[str] = set()
    for index, item in enumerate(items):
        if isinstance(item, CallItem):
            known.add(item.call_id)
        if isinstance(item, CallOutputItem) and item.call_id not in known:
            raise broken_rule(
                "invalid_value",
                "No item of type 'function_call' before it has this id; send the whole conversation",
                param=f"input[{index}].call_id",
            )


class OfFunction(BaseModel):
    """Mixed into what has a level more in chat, below its type."""

    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, value: Any) -> Any:
        return refuse_other_types(value, "function")


class FunctionTool(OfFunction, FunctionDefinition):
    """A function that the model may call."""


class FunctionToolChoice(OfFunction, FunctionChoice):
    """The one function that must be called."""
