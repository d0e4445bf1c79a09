"""Bodies of POST /v1/messages and /v1/messages/count_tokens, in Anthropic's shape."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from app.schemas.body import OpenAIBody
from app.schemas.chat import MAX_MESSAGES, MAX_PARTS, TextPart
from app.schemas.sampling import MAX_STOPS, MAX_TOKENS_FIELD, StopString, broken_rule, text_or_list

_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)

Blocks = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS), Tag("<list>")],
    Discriminator(text_or_list),
]


class Turn(BaseModel):
    """One message; cache_control and citations of its blocks are not looked at."""

    model_config = _loose

    role: Literal["user", "assistant", "system"]
    content: Blocks


class Choice(BaseModel):
    """Of thinking, which `disabled` leaves out, or of tools, of which there are none."""

    model_config = _loose

    type: str = Field(max_length=32)


class OutputConfig(BaseModel):
    """format: the JSON schema that the answer must have."""

    model_config = _loose

    format: dict[str, Any] | None = None


class CountTokensRequest(OpenAIBody):
    """The conversation alone."""

    unsupported: ClassVar[dict[str, str]] = {
        "tools": "this server does not call tools on this route",
        "mcp_servers": "this server calls no other servers",
        "container": "this server runs no code",
    }

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES - 1)]
    system: Blocks | None = None
    thinking: Choice | None = None
    tool_choice: Choice | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None

    @model_validator(mode="after")
    def _asks_for_text(self) -> Self:
        if self.thinking is not None and self.thinking.type != "disabled":
            raise broken_rule("unsupported_parameter", "Only 'disabled' is supported", param="thinking")
        if self.tool_choice is not None and self.tool_choice.type not in ("auto", "none"):
            raise broken_rule("unsupported_parameter", "There are no tools to choose from", param="tool_choice")
        return self

    def chat_messages(self) -> list[dict[str, Any]]:
        """As chat has them: the system prompt first, neighbours of one role as one message."""
        turns = [] if self.system is None else [("system", self.system)]
        turns += [(turn.role, turn.content) for turn in self.messages]
        merged: list[dict[str, Any]] = []
        for role, content in turns:
            texts = [content] if isinstance(content, str) else [part.text for part in content]
            parts = [{"type": "text", "text": text} for text in texts]
            if merged and merged[-1]["role"] == role:
                merged[-1]["content"] += parts
            else:
                merged.append({"role": role, "content": parts})
        return merged


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS_FIELD)
    stop_sequences: list[StopString] | None = Field(None, max_length=MAX_STOPS)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    stream: bool | None = None
    metadata: Any = None
    service_tier: Any = None
