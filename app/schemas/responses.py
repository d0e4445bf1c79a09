"""Body of POST /v1/responses."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.body import HarmlessFields, OpenAIBody
from app.schemas.chat import MAX_MESSAGES, MAX_PARTS, TextPart
from app.schemas.sampling import MAX_TOKENS_FIELD, broken_rule, text_or_list
from workers.protocol.specs import MAX_TOP_LOGPROBS

LOGPROBS: Final = "message.output_text.logprobs"
_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class InputPart(TextPart):
    """One part of an item's content: of a user's message, or of an answer that is sent back."""

    text_types = ("input_text", "output_text", "text")


InputContent = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputPart], Field(min_length=1, max_length=MAX_PARTS), Tag("<list>")],
    Discriminator(text_or_list),
]


class InputMessage(BaseModel):
    """One item of the input; id, status and phase of an earlier answer are not looked at."""

    model_config = _loose

    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent

    @model_validator(mode="before")
    @classmethod
    def _only_messages(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type", "message") != "message":
            raise broken_rule("unsupported_content", "Only items of type 'message' are supported")
        return value

    def parts(self) -> str | list[dict[str, str]]:
        """The content as chat has it."""
        if isinstance(self.content, str):
            return self.content
        return [{"type": "text", "text": part.text} for part in self.content]


Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES - 1), Tag("<list>")],
    Discriminator(text_or_list),
]


class TextConfig(BaseModel):
    """The shape of the answer: `format` is chat's response_format with the schema's fields on one level."""

    model_config = _loose

    format: dict[str, Any] | None = None


class Reasoning(BaseModel):
    """effort goes to the chat template as `reasoning_effort`."""

    model_config = _loose

    effort: str | None = Field(None, max_length=32)


class ResponsesRequest(HarmlessFields, OpenAIBody):
    """POST /v1/responses, without memory: nothing is stored, and every request brings its whole conversation."""

    unsupported: ClassVar[dict[str, str]] = {
        "previous_response_id": "nothing is stored here; send the whole conversation as 'input'",
        "conversation": "nothing is stored here; send the whole conversation as 'input'",
        "background": "answers are sent at once or streamed",
        "prompt": "nothing is stored here; write the prompt out",
        "tools": "this server does not call tools on this route",
    }

    model: str
    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS_FIELD)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[Annotated[str, Field(max_length=64)]] | None = Field(None, max_length=16)
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    stream: bool | None = None
    stream_options: Any = None
    truncation: str | None = Field(None, max_length=32)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.truncation not in (None, "disabled"):
            raise broken_rule("unsupported_parameter", "Only 'disabled' is supported", param="truncation")
        if self.tool_choice not in (None, "none", "auto"):
            raise broken_rule("unsupported_parameter", "There are no tools to choose from", param="tool_choice")
        for index, name in enumerate(self.include or ()):
            if name != LOGPROBS:
                raise broken_rule("unsupported_parameter", f"Only '{LOGPROBS}' is supported", param=f"include[{index}]")
        if self.stream_options is not None and not self.stream:
            raise broken_rule("invalid_value", "It is only allowed when 'stream' is true", param="stream_options")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's text comes with log probabilities."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())
