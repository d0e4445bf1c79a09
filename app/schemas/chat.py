"""Body of POST /v1/chat/completions."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.body import UNSUPPORTED_SAMPLING, HarmlessFields, OpenAIBody
from app.schemas.sampling import (
    MAX_TOKENS_FIELD,
    SamplingFields,
    StreamOptions,
    broken_rule,
    check_stream_fields,
    text_or_list,
)
from app.schemas.structured import StructuredFields
from app.schemas.tools import MAX_CALLS, ToolCall, ToolFields
from workers.protocol.specs import MAX_TOP_LOGPROBS

MAX_MESSAGES: Final = 2048
MAX_PARTS: Final = 256
MAX_SWITCH_CHARS: Final = 256
# Switches that published chat templates read; a name beside these could overwrite what the renderer itself passes.
TEMPLATE_SWITCHES: Final = frozenset(
    {"enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "preserve_thinking", "date_string"}
)

_strict = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = _strict
    text_types: ClassVar[tuple[str, ...]] = ("text",)

    type: Annotated[str, Field(max_length=64)]
    text: str = ""

    @model_validator(mode="after")
    def _only_text(self) -> Self:
        if self.type not in self.text_types:
            types = " or ".join(f"'{name}'" for name in self.text_types)
            raise broken_rule("unsupported_content", f"Only parts of type {types} are supported")
        if "text" not in self.model_fields_set:
            raise broken_rule("missing_required_parameter", f"A part of type '{self.type}' needs one", param="text")
        return self


# Each message tells its first bad part: a body may have a hundred thousand of them.
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[TextParts, Tag("<list>")],
    Discriminator(text_or_list),
]


class Message(BaseModel):
    """One turn of the conversation."""

    model_config = _strict

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        # as an answer of this server's may come back
        is_more_than_content = self.role == "assistant" and bool(self.tool_calls or self.thoughts)
        if self.content is None and not is_more_than_content:
            raise broken_rule("missing_required_parameter", "A message needs one", param="content")
        if self.tool_calls and self.role != "assistant":
            raise broken_rule("invalid_value", "Only messages of the role 'assistant' have them", param="tool_calls")
        if self.tool_call_id is None and self.role == "tool":
            raise broken_rule(
                "missing_required_parameter", "A message of the role 'tool' needs one", param="tool_call_id"
            )
        return self

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it: content one string, absent fields absent."""
        message: dict[str, Any] = {"role": self.role, "content": self.text()}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.thoughts:
            # templates read one or the other
            message["reasoning_content"] = message["reasoning"] = self.thoughts
        return message

    @property
    def thoughts(self) -> str | None:
        """What the assistant has thought, under either name."""
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    def text(self) -> str:
        """The content as one string; parts are separate lines."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


def _allowed_switches(switches: dict[str, Any]) -> dict[str, Any]:
    for name, value in switches.items():
        if name not in TEMPLATE_SWITCHES:
            raise broken_rule(
                "unsupported_parameter", f"Only these are passed on: {', '.join(sorted(TEMPLATE_SWITCHES))}"
            )
        if not isinstance(value, bool | int | float | str | None) or len(str(value)) > MAX_SWITCH_CHARS:
            raise broken_rule("invalid_type", "Values must be short scalars", param=name)
    return switches


def check_answered_calls(messages: list[Message]) -> None:
    """Raises a broken rule if a tool answers a call that the assistant has not made."""
    known: set[str] = set()
    for index, message in enumerate(messages):
        known |= {call.id for call in message.tool_calls or ()}
        if message.role == "tool" and message.tool_call_id not in known:
            raise broken_rule(
                "invalid_value",
                "No message of the assistant before it has a call of this id",
                param=f"messages[{index}].tool_call_id",
            )


Switches = Annotated[dict[str, Any], AfterValidator(_allowed_switches)]


class ChatRequest(HarmlessFields, ToolFields, StructuredFields, SamplingFields, OpenAIBody):
    """POST /v1/chat/completions; user, metadata, store and their kin are accepted and have no effect."""

    unsupported: ClassVar[dict[str, str]] = {
        **UNSUPPORTED_SAMPLING,
        "functions": "send them as 'tools'",
        "function_call": "send it as 'tool_choice'",
        "audio": "this server speaks text only",
        "prediction": "leave it out",
        "web_search_options": "this server does not search the web",
        "chat_template": "templates come from the model's own folder only",
        "documents": "put the documents into a message",
    }

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS_FIELD)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS_FIELD)
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: list[str] | None = Field(None, max_length=8)
    reasoning_effort: str | None = Field(None, max_length=32)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Switches | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_stream_fields(self, self.stream_options)
        if self.top_logprobs is not None and not self.logprobs:
            raise broken_rule("invalid_value", "'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        check_answered_calls(self.messages)
        self._check_room_for_calls()
        if self.modalities not in (None, [], ["text"]):
            raise broken_rule("unsupported_parameter", "The only modality is 'text'", param="modalities")
        if self.continue_final_message and self.add_generation_prompt:
            raise broken_rule(
                "invalid_value",
                "It excludes 'add_generation_prompt'; leave one of them out",
                param="continue_final_message",
            )
        return self

    def _check_room_for_calls(self) -> None:
        constraint = self.constraint()
        is_json = constraint is not None and constraint.grammar.kind in ("json_schema", "json_object")
        if constraint is None or not (self.must_call or (self.may_call and not is_json)):
            return
        way_out = "leave it out" if self.must_call else "leave it out, make it JSON"
        raise broken_rule(
            "invalid_value",
            f"It leaves no room for calls of tools; {way_out}, or set 'tool_choice' to 'none'",
            param=constraint.param,
        )
