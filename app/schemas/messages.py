"""Bodies of POST /v1/messages and /v1/messages/count_tokens, in Anthropic's shape."""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.schemas.body import OpenAIBody
from app.schemas.chat import MAX_MESSAGES, TextPart
from app.schemas.message_blocks import (
    Block,
    Blocks,
    Texts,
    Thinking,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from app.schemas.sampling import MAX_STOPS, MAX_TOKENS_FIELD, StopString, broken_rule
from app.schemas.tools import MAX_TOOLS

_loose = ConfigDict(extra="ignore", strict=True, frozen=True, hide_input_in_errors=True)
# which of the blocks belong to one role alone
_ROLES: Final = {ThinkingBlock: "assistant", ToolUseBlock: "assistant", ToolResultBlock: "user"}


class Turn(BaseModel):
    """One message; cache_control and citations of its blocks are not looked at."""

    model_config = _loose

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _blocks_of_role(self) -> Self:
        for index, block in enumerate(self.blocks()):
            role = _ROLES.get(type(block), self.role)
            if role != self.role:
                raise broken_rule(
                    "invalid_value", f"Only turns of the role '{role}' have such a block", param=f"content[{index}]"
                )
        return self

    def blocks(self) -> list[Block]:
        """Empty if the content is a string."""
        return [] if isinstance(self.content, str) else self.content


class OutputConfig(BaseModel):
    """format: the JSON schema that the answer must have."""

    model_config = _loose

    format: dict[str, Any] | None = None


class CountTokensRequest(OpenAIBody):
    """The conversation alone."""

    unsupported: ClassVar[dict[str, str]] = {
        "mcp_servers": "this server calls no other servers",
        "container": "this server runs no code",
    }

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES - 1)]
    system: Texts | None = None
    thinking: Thinking | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None

    @model_validator(mode="after")
    def _calls_have_results(self) -> Self:
        known: set[str] = set()
        for index, turn in enumerate(self.messages):
            for place, block in enumerate(turn.blocks()):
                if isinstance(block, ToolUseBlock):
                    known.add(block.id)
                if isinstance(block, ToolResultBlock) and block.tool_use_id not in known:
                    raise broken_rule(
                        "invalid_value",
                        "No block of type 'tool_use' before it has this id",
                        param=f"messages[{index}].content[{place}].tool_use_id",
                    )
        last = self.messages[-1]
        if last.role == "assistant" and last.blocks() and not isinstance(last.blocks()[-1], TextPart):
            raise broken_rule(
                "invalid_value",
                "The answer goes on where the last turn of the assistant ends: end it with text, or add a user's turn",
                param=f"messages[{len(self.messages) - 1}].content",
            )
        return self


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    unsupported: ClassVar[dict[str, str]] = {
        **CountTokensRequest.unsupported,
        "stop": "send it as 'stop_sequences'",
        "response_format": "send it as 'output_config.format'",
        "structured_outputs": "send a JSON Schema as 'output_config.format'",
        "logprobs": "this route has no log probabilities; /v1/chat/completions has",
        "top_logprobs": "this route has no log probabilities; /v1/chat/completions has",
        "functions": "send them as 'tools'",
    }

    max_tokens: int = Field(ge=1, le=MAX_TOKENS_FIELD)
    stop_sequences: list[StopString] | None = Field(None, max_length=MAX_STOPS)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    n: Literal[1] | None = None
    stream: bool | None = None
    metadata: Any = None
    service_tier: Any = None
