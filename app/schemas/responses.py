"""Body of POST /v1/responses."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.body import HarmlessFields, OpenAIBody
from app.schemas.response_items import FunctionTool, FunctionToolChoice, Input, check_answered_calls
from app.schemas.sampling import MAX_TOKENS_FIELD, broken_rule
from app.schemas.tools import MAX_TOOLS, ChoiceMode, choice_kind
from workers.protocol.specs import MAX_TOP_LOGPROBS

LOGPROBS: Final = "message.output_text.logprobs"
# Thinking is in the answer as it is, so a client that would send it back encrypted can send it back.
_INCLUDED: Final = (LOGPROBS, "reasoning.encrypted_content")
_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


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
        "messages": "send them as 'input'",
        "max_tokens": "send it as 'max_output_tokens'",
        "max_completion_tokens": "send it as 'max_output_tokens'",
        "response_format": "send it as 'text.format'",
        "structured_outputs": "send a JSON Schema as 'text.format'",
        "reasoning_effort": "send it as 'reasoning.effort'",
        "logprobs": "send 'top_logprobs' alone",
        "stop": "this route has no stop strings; /v1/chat/completions has",
        "functions": "send them as 'tools'",
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
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: Any = None
    truncation: str | None = Field(None, max_length=32)
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[
            Annotated[ChoiceMode, Tag("<mode>")] | Annotated[FunctionToolChoice, Tag("<named>")],
            Discriminator(choice_kind),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Any = None
    prompt_cache_retention: Any = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.truncation not in (None, "disabled"):
            raise broken_rule("unsupported_parameter", "Only 'disabled' is supported", param="truncation")
        for index, name in enumerate(self.include or ()):
            if name not in _INCLUDED:
                known = " and ".join(f"'{one}'" for one in _INCLUDED)
                raise broken_rule("unsupported_parameter", f"Only {known} are supported", param=f"include[{index}]")
        if self.stream_options is not None and not self.stream:
            raise broken_rule("invalid_value", "It is only allowed when 'stream' is true", param="stream_options")
        if not isinstance(self.input, str):
            check_answered_calls(self.input)
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's text comes with log probabilities."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())
